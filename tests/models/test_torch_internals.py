"""Private names of torch: all in one module, each with a fallback that gives equal results."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import captioner
from captioner.models import torch_internals
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.encoders.folded import quick_copy
from captioner.models.features import Features
from captioner.models.recurrence.unroll import Recurrence
from captioner.models.snapshot import Snapshot
from captioner.models.weight_layout import Packed, laid_out

PACKAGE = Path(captioner.__file__).parent
PRIVATE = {
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_is_mkldnn_bf16_supported",
    "_convolution_pointwise",
    "sigmoid_backward",
    "tanh_backward",
    "grad_input",
    "_C",
    "_are_functorch_transforms_active",
    "_is_torch_function_mode_enabled",
    "_len_torch_dispatch_stack",
    "_current_level",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_version",
    "_NormBase",
    "_is_avx512_bf16_supported",
    "_is_amx_tile_supported",
}
ROOTS = {"torch", "nn", "F", "functional", "forward_ad"}


def names(source: str) -> Iterator[str]:
    """The private names of torch in some code: attributes of its modules, known ones, and texts."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            of_torch = isinstance(root, ast.Name) and root.id in ROOTS
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            known = node.attr in PRIVATE and node.attr.startswith("_")
            if (of_torch and private) or known:
                yield node.attr
        if isinstance(node, ast.Constant) and node.value in PRIVATE:
            yield str(node.value)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield from (one.name for one in node.names if one.name.startswith("_"))
    if "torch.ops" in source:
        yield "ops"


def test_private_names_of_torch_are_in_one_module() -> None:
    for path in PACKAGE.rglob("*.py"):
        private = sorted(set(names(path.read_text(encoding="utf-8"))))
        if path.name == "torch_internals.py":
            assert set(private) - {"ops"} == PRIVATE
        else:
            assert not private, f"{path}: {', '.join(private)} belong in torch_internals.py"


# Fallbacks ----------------------------------------------------------------------------------------


class Without:
    """A module of torch without its private names, and with some others replaced."""

    def __init__(self, whole: object, **replaced: object) -> None:
        self.__dict__.update(whole=whole, **replaced)

    def __getattr__(self, name: str) -> object:
        if name in PRIVATE:
            raise AttributeError(name)
        return getattr(self.whole, name)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had none of its private names."""
    monkeypatch.setattr(torch.ops, "mkldnn", Without(torch.ops.mkldnn))
    monkeypatch.setattr(torch.ops, "aten", Without(torch.ops.aten))
    seen = Without(torch, _C=Without(torch._C), cpu=Without(torch.cpu))
    monkeypatch.setattr(torch_internals, "torch", seen)
    monkeypatch.setattr(torch_internals, "forward_ad", Without(forward_ad))


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_gradients_of_activations(name: str, bare: None) -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    y = getattr(torch, name)(x)
    gradient = torch.randn(5, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, x, gradient)
    getattr(torch_internals, f"{name}_backward")(gradient, y.detach(), out=gradient)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_recurrence_gives_equal_results_with_fallbacks(
    cell: str, request: pytest.FixtureRequest
) -> None:
    recurrence = Recurrence(cell=cell, input_size=7, hidden_size=6).double()
    inputs = torch.randn(2, 5, 7, dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        outputs, _ = recurrence(inputs, recurrence.zeros(2))
        return [outputs, *torch.autograd.grad(outputs.square().sum(), [*recurrence.parameters()])]

    expected = results()
    request.getfixturevalue("bare")
    for actual, right in zip(results(), expected, strict=True):
        torch.testing.assert_close(actual, right)


def test_a_decoder_gives_equal_results_without_packed_weights(bare: None) -> None:
    decoder = ShowTell(vocabulary_size=11, feature_size=8, embedding_size=7, hidden_size=6).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(isinstance(part, Packed) for part in laid_out(decoder).modules())
    stepper, features, tokens = decoder.stepper(), Features(torch.randn(2, 8)), torch.tensor([1, 2])
    logits, _ = stepper.step(tokens, stepper.start(features))
    expected, _ = decoder.step(tokens, decoder.start(features))
    torch.testing.assert_close(logits, expected)


def test_an_encoder_gives_equal_features_with_fallbacks(bare: None) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    image = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        quick, _ = quick_copy(network, lambda one: one(image), bf16=False)
        torch.testing.assert_close(quick(image), network(image))
    assert not torch_internals.has_onednn_convolution(torch.float32)
    assert not torch_internals.onednn_multiplies_bf16()
    assert not torch_internals.processor_multiplies_bf16()


def test_operations_count_as_observed_if_torch_has_no_information(bare: None) -> None:
    assert torch_internals.is_transformed()
    assert torch_internals.is_intercepted()


def test_without_a_version_counter_weights_count_as_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear = nn.Linear(5, 7)
    before = Snapshot([linear])
    assert before.counted([linear])
    with torch.no_grad():
        linear.bias.add_(1)
    assert not before.counted([linear])
    before = Snapshot([linear])
    monkeypatch.setattr(torch_internals, "getattr", _without_versions, raising=False)
    assert not before.counted([linear])
    assert not Snapshot([linear]).counted([linear])


def _without_versions(thing: object, name: str, *default: object) -> object:
    return default[0] if name == "_version" else getattr(thing, name, *default)


def test_norms_with_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(module: nn.Module) -> bool:
        return isinstance(module, torch_internals.running_norms())

    running = [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.SyncBatchNorm(3)]
    for there in (True, False):
        if not there:
            monkeypatch.delattr(nn.modules.batchnorm, "_NormBase")
        assert all(map(kept, running))
        assert not any(map(kept, [nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Linear(2, 3)]))


def test_observers_are_detected() -> None:
    linear = nn.Linear(5, 7)
    assert not torch_internals.has_hooks(linear)
    hooked = copy.deepcopy(linear)
    hooked.register_forward_hook(lambda *_: None)
    assert torch_internals.has_hooks(hooked)
    assert not torch_internals.is_intercepted()
    with torch.device("cpu"):  # a mode of torch
        assert torch_internals.is_intercepted()
    with forward_ad.dual_level():
        assert torch_internals.is_intercepted()
    seen = []
    torch.func.vmap(lambda x: seen.append(torch_internals.is_transformed()) or x)(torch.ones(2))
    assert seen == [True]
    assert not torch_internals.is_transformed()
