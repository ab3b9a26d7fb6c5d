"""Products by oneDNN: equal to torch's, with equal gradients."""

import copy
import pickle
from itertools import product as every
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from captioner.models import matmul, weight_layout
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.matmul import Linear, add_product, affine, product
from captioner.models.weight_layout import Packed, laid_out

BY_ONEDNN = matmul.by_onednn
HAS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(autouse=True, params=[True, False], ids=["oneDNN", "torch"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, whatever processor this is."""
    if request.param and not HAS:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(matmul, "by_onednn", lambda: request.param)
    monkeypatch.setattr("captioner.models.weight_layout.by_onednn", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 7, 5), (33, 64, 20), (64, 20, 300)])
@pytest.mark.parametrize("turned", every((False, True), repeat=2))
def test_products_are_those_of_float64(
    rows: int, inner: int, columns: int, turned: tuple[bool, bool]
) -> None:
    a = torch.randn(inner, rows).t() if turned[0] else torch.randn(rows, inner)
    b = torch.randn(columns, inner).t() if turned[1] else torch.randn(inner, columns)
    c, bias = torch.randn(rows, columns), torch.randn(columns)
    expected = a.double() @ b.double()

    def near(actual: torch.Tensor, expected: torch.Tensor) -> bool:
        return actual.is_contiguous() and torch.allclose(actual.double(), expected, atol=1e-4)

    assert near(product(a, b), expected)
    out = torch.empty(rows, columns)
    assert product(a, b, out=out) is out
    assert near(out, expected)
    assert near(add_product(bias, a, b), expected + bias)
    assert near(add_product(c, a, b), expected + c)
    assert near(affine(a, b.t(), bias), expected + bias)
    wanted = expected + c
    assert add_product(c, a, b, out=c) is c
    assert near(c, wanted)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (0, 12), (12,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_equals_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    ours, theirs = Linear(12, 30, bias=bias), nn.Linear(12, 30, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        results.append((y, *gradients))
    for actual, expected in zip(*results):
        assert actual.shape == expected.shape
        assert torch.allclose(actual, expected, atol=1e-4)


def test_products_are_computed_by_onednn(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply, calls = matmul.onednn_linear, []
    monkeypatch.setattr(matmul, "onednn_linear", lambda *a: calls.append(a) or multiply(*a))
    Linear(4, 6)(torch.randn(3, 4)).sum().backward()
    assert len(calls) == (2 if onednn else 0)  # forward, and the gradient of W


def test_gradients_of_gradients() -> None:
    layer, x = Linear(4, 6), torch.randn(3, 4, requires_grad=True)
    plain = nn.Linear(4, 6)
    plain.load_state_dict(layer.state_dict())
    seconds = []
    for one in (layer, plain):
        (first,) = torch.autograd.grad(one(x).pow(3).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.allclose(*seconds, rtol=1e-4)


def test_a_layer_uses_nn_linear_if_observed() -> None:
    layer, x = Linear(4, 6), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    layer = layer.float()
    batched = torch.func.vmap(layer)(x)
    assert torch.allclose(batched, layer(x), atol=1e-5)
    gradient = torch.func.grad(lambda one: layer(one).sum())(x[0])
    assert torch.allclose(gradient, layer.weight.sum(0), atol=1e-5)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.allclose(exported(x), layer(x), atol=1e-5)


def test_a_layer_accepts_the_inputs_of_nn_linear() -> None:
    assert Linear(5, 7, device="meta")(torch.randn(2, 5, device="meta")).shape == (2, 7)
    frozen, x = Linear(5, 7).requires_grad_(False), torch.randn(2, 5, requires_grad=True)
    inside = x * 1
    y = frozen(inside)
    inside.add_(1)  # its weight does not learn, so that the input is not needed any more
    y.sum().backward()
    assert torch.allclose(x.grad, frozen.weight.sum(0).expand(2, 5), atol=1e-5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.randn(2, 5), torch.ones(2, 5))
        tangent = forward_ad.unpack_dual(frozen(dual)).tangent
    assert torch.allclose(tangent, frozen.weight.sum(1).expand(2, 7), atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        frozen(torch.randn(2, 5))
    assert counter.get_total_flops() == 2 * 2 * 5 * 7
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        frozen(torch.randn(2, 6))


def test_a_copied_layer_gives_equal_results() -> None:
    layer, x = Linear(5, 7), torch.randn(2, 5)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(copied) is Linear
        assert torch.equal(copied(x), layer(x))


def test_a_layer_with_hooks_is_not_packed() -> None:
    layer, seen = nn.Sequential(Linear(5, 7)), []
    layer[0].register_forward_hook(lambda *_: seen.append(1))
    copied = laid_out(layer)
    assert isinstance(copied[0], Linear)
    x = torch.randn(2, 5)
    assert torch.allclose(copied(x), layer(x), atol=1e-5)
    assert len(seen) == 2


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("named", ["prune", "weight_norm", "spectral_norm"])
def test_weights_that_a_hook_computes(named: str) -> None:
    layer, x = nn.Sequential(Linear(5, 7)), torch.randn(2, 5)
    if named == "prune":
        prune.random_unstructured(layer[0], "weight", amount=0.5)
    else:
        getattr(nn.utils, named)(layer[0])
    layer.eval()
    assert torch.allclose(laid_out(layer)(x), layer(x), atol=1e-5)


def test_a_decoder_is_packed_if_onednn_multiplies(onednn: bool) -> None:
    decoder = ShowTell(
        vocabulary_size=20, feature_size=6, embedding_size=8, hidden_size=8, dropout=0.0
    ).eval()
    copied = laid_out(decoder)
    assert isinstance(copied.output, Packed) is onednn
    h = torch.randn(5, 8)
    assert torch.allclose(copied.output(h), decoder.output(h), atol=1e-5)


def test_weights_are_rearranged_when_they_are_first_used(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rearranged: list[torch.Size] = []
    for name in ("pack_weight", "_by_columns"):
        original = getattr(weight_layout, name)

        def rearrange(weight: torch.Tensor, original: Any = original) -> torch.Tensor:
            rearranged.append(weight.shape)
            return original(weight)

        monkeypatch.setattr(weight_layout, name, rearrange)
    layers = nn.ModuleList([Linear(5, 7), Linear(7, 600)])
    layers.register_buffer("constant", torch.zeros(3))
    copied, x = laid_out(layers), torch.randn(2, 7)
    assert copied.constant is layers.constant
    assert rearranged == []
    for _ in range(2):
        assert torch.allclose(copied[1](x), layers[1](x), atol=1e-5)
    assert rearranged == [(600, 7)]
    assert torch.equal(copied[1].weight, layers[1].weight)


@pytest.mark.parametrize(
    ("vendor", "capability", "uses_onednn"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("vendor_id\t: AuthenticAMD", "AVX2", False),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_onednn_is_used_on_amd_processors_with_avx512(
    vendor: str, capability: str, uses_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: HAS)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    assert BY_ONEDNN.__wrapped__() is (uses_onednn and HAS)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not BY_ONEDNN.__wrapped__()
