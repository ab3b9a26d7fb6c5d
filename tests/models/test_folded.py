"""The quick copy of a frozen encoder, compared with the network from which it was made."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner.data.features import fingerprint
from captioner.models import precision
from captioner.models.encoders.encoder import AT_ONCE, Encoder
from captioner.models.encoders.folded import FusedConv, fold, quick_copy
from captioner.models.encoders.libraries import build_encoder
from captioner.models.features import Features

NETWORKS = [
    ("bundled", "efficientnet_lite0", 49),  # timm's norms, which hold their activation
    ("bundled", "efficientnet_lite2", 64),
    ("timm", "test_resnet", 15),  # x += shortcut between a norm and an activation
    ("torchvision", "mobilenet_v3_small", 34),  # activations beside the norms
]


def stirred(library: str, network: str, **options: Any) -> Encoder:
    """An encoder whose norms do something, the same at every call."""
    torch.manual_seed(2)
    encoder = build_encoder(library=library, network=network, pretrained=False, **options)
    source = torch.Generator().manual_seed(3)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.bias.data):
                values.normal_(0, 0.2, generator=source)
            for values in (norm.running_var, norm.weight.data):
                values.uniform_(0.5, 1.5, generator=source)
    return encoder


def plain(encoder: Encoder, images: Tensor) -> Features:
    with torch.no_grad():
        return encoder.extract(encoder.backbone, images)


def distance(features: Tensor | None, expected: Tensor | None) -> float:
    assert features is not None
    assert expected is not None
    return float((features - expected).norm() / expected.norm())


@pytest.mark.parametrize(("library", "network", "convolutions"), NETWORKS)
def test_features_are_those_of_the_network(library: str, network: str, convolutions: int) -> None:
    encoder = stirred(library, network)
    images = torch.randn(2, 3, 96, 128)
    features, expected = encoder(images), plain(encoder, images)
    assert distance(features.pooled, expected.pooled) < 5e-5  # rounding, of 64 layers at most
    assert distance(features.grid, expected.grid) < 5e-5
    running = encoder._running()[0]
    assert sum(isinstance(one, FusedConv) for one in running.modules()) == convolutions
    assert not any(isinstance(one, FusedConv) for one in encoder.modules())

    halved = stirred(library, network, precision="bf16")(images)
    assert halved.pooled.dtype == torch.float32
    assert 1e-4 < distance(halved.pooled, expected.pooled) < 0.15
    assert distance(halved.grid, expected.grid) < 0.25  # of random layers; 0.05 of trained ones


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
@pytest.mark.parametrize("affine", [True, False])
def test_folding_is_exact(act: nn.Module, affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, and oneDNN's operation beside torch's in float32."""
    conv = nn.Conv2d(6, 4, (3, 5), stride=2, padding=(1, 2), groups=2).double()
    norm = nn.BatchNorm2d(4, affine=affine).double().eval()
    norm.running_mean.normal_()  # type: ignore[union-attr]
    norm.running_var.uniform_(0.1, 2)  # type: ignore[union-attr]
    images = 5 * torch.randn(3, 6, 11, 13, dtype=torch.float64)
    fused = FusedConv(conv, *fold(conv, norm), act)
    expected = act(norm(conv(images)))
    quickly = copy.deepcopy(fused).float()(images.float())
    torch.testing.assert_close(quickly.double(), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(fused(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(9, 12), (10, 7)])
def test_padding_is_that_of_timm(kernel: int, stride: int, size: tuple[int, int]) -> None:
    from timm.layers.conv2d_same import Conv2dSame

    conv = Conv2dSame(3, 4, kernel, stride=stride)
    norm = nn.BatchNorm2d(4).eval()
    images = torch.randn(2, 3, *size)
    expected = norm(conv(images))
    fused = FusedConv(conv, *fold(conv, norm), nn.Identity())
    torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-5)


class Forked(nn.Module):
    """A convolution that a norm reads, and the sum after it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        nn.init.constant_(self.norm.bias, 0.7)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return maps + self.act(self.norm(maps))


@pytest.mark.reliability("shared objects")
def test_a_copy_with_other_features_is_discarded() -> None:
    network = Forked().eval()
    image = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        assert quick_copy(network, lambda one: one(image), bf16=False) == (network, torch.float32)


def test_networks_that_fail_in_bfloat16_stay_in_float32() -> None:
    class Strict(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            if input.dtype != torch.float32:
                raise RuntimeError("not implemented for 'BFloat16'")
            return super().forward(input)

    network = Strict(3, 4, 3)
    image = torch.randn(1, 3, 9, 9)

    def run(one: nn.Module) -> Tensor:
        return one(image.to(next(one.parameters()).dtype))

    with torch.no_grad():
        assert quick_copy(network, run, bf16=True)[1] == torch.float32
        assert quick_copy(nn.Conv2d(3, 4, 3), run, bf16=True)[1] == torch.bfloat16


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bfloat16_if_the_processor_has_it(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: able)
    encoder = stirred("timm", "test_resnet", precision="auto")
    assert encoder.computes_in == (torch.bfloat16 if able else torch.float32)
    assert stirred("timm", "test_resnet").computes_in == torch.float32


def test_explicit_bfloat16_is_used_without_onednn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a processor without AVX-512, whatever this one is; the warning is logged once."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(precision, "_logged", set())
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        encoder = stirred("timm", "test_resnet", precision="bf16")
        assert encoder.computes_in == torch.bfloat16
        assert 1e-4 < distance(encoder(images).pooled, plain(encoder, images).pooled) < 0.15
    assert len(caplog.messages) == 1
    assert "encoder.precision=bf16 is emulated on this processor" in caplog.text


def test_caches_of_different_precision_are_not_mixed() -> None:
    names = [fingerprint(stirred("timm", "test_resnet", precision=one)) for one in ("fp32", "bf16")]
    assert names[0] != names[1]
    assert fingerprint(stirred("timm", "test_resnet")) == names[0]


def test_another_precision_makes_another_copy() -> None:
    encoder = stirred("timm", "test_resnet").eval()
    image = torch.randn(1, 3, 64, 64)
    single = encoder(image).pooled
    encoder.precision = "bf16"
    assert encoder.computes_in == torch.bfloat16
    assert not torch.equal(encoder(image).pooled, single)
    encoder.precision = "fp32"
    assert torch.equal(encoder(image).pooled, single)


def test_a_trainable_encoder_uses_no_copy() -> None:
    encoder = stirred("timm", "test_resnet", trainable=True, precision="bf16").eval()
    images = torch.randn(2, 3, 64, 64)
    features = encoder(images).pooled
    assert encoder.computes_in == torch.float32
    assert torch.equal(features, plain(encoder, images).pooled)
    features.sum().backward()
    assert all(one.grad is not None for one in encoder.backbone.parameters())


def test_changed_weights_change_the_features() -> None:
    encoder = stirred("timm", "test_resnet")
    images = torch.randn(2, 3, 64, 64)
    first = encoder(images).pooled
    state = copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    assert distance(encoder(images).pooled, first) > 1e-3
    assert distance(encoder(images).pooled, plain(encoder, images).pooled) < 1e-5
    encoder.load_state_dict(state)
    assert torch.equal(encoder(images).pooled, first)


@pytest.mark.reliability("shared objects")
def test_the_quick_copy_is_not_pickled_or_copied() -> None:
    encoder = stirred("timm", "test_resnet")
    names, random = list(encoder.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        encoder(torch.zeros(1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), random)
    assert list(encoder.state_dict()) == names
    assert encoder._quick is not None
    assert copy.deepcopy(encoder)._quick is None
    assert pickle.loads(pickle.dumps(encoder))._quick is None


def test_many_images_are_encoded_a_few_at_a_time() -> None:
    encoder = stirred("timm", "test_resnet")
    images = torch.randn(2 * AT_ONCE + 3, 3, 32, 32)
    features, expected = encoder(images), plain(encoder, images)
    assert features.grid.shape == expected.grid.shape
    assert distance(features.pooled, expected.pooled) < 1e-5
    assert distance(features.grid, expected.grid) < 1e-5
    assert encoder(images[:0]).pooled.shape == (0, encoder.feature_size)


def test_bytes_and_floats_give_the_same_features() -> None:
    encoder = stirred("timm", "test_resnet")
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    floats = encoder.transform.normalise_batch(pixels)
    assert torch.equal(encoder(pixels).pooled, encoder(floats).pooled)


def test_an_unknown_precision_gets_one_line() -> None:
    with pytest.raises(ValueError, match="encoder.precision='half' .*auto, fp32, bf16"):
        stirred("timm", "test_resnet", precision="half")
