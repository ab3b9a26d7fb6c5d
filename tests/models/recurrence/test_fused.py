"""The fused loops, compared with the readable loop and torch.nn; packing; the loss in place."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.peers import PEERS, peer_of
from support.small_show_tell import features, show_tell
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioner.data.batches import pad
from captioner.models.packing import IGNORED, Packing
from captioner.models.recurrence import fused
from captioner.models.recurrence.cells import GRU, RNN
from captioner.models.recurrence.fused import CHOICE, loop_of
from captioner.models.recurrence.loops import LOOPS, _tanh_
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence
from captioner.tokenizers import build_tokenizer
from captioner.training.losses import cross_entropy

B, T, E, H, V = 2, 5, 7, 6, 11
LENGTHS = torch.tensor([2, 5, 1, 4, 4])
PACKING = Packing.of(LENGTHS)
FULL = (B,) * T
FUSED = [name for name, cell in CELLS.items() if cell in LOOPS]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def recurrence(cell: str, layers: int = 1) -> Recurrence:
    return Recurrence(cell=cell, input_size=E, hidden_size=H, layers=layers).double()


def everything(ours: Recurrence, sizes: tuple[int, ...], *, fused: bool) -> list[torch.Tensor]:
    """Outputs, last state, and gradients of inputs, first state and parameters."""
    ours.fused = fused
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(sum(sizes), E).requires_grad_()
    state = {name: draw(*zero.shape) for name, zero in ours.zeros(sizes[0]).items()}
    given = [inputs, *(tensor.requires_grad_() for tensor in state.values()), *ours.parameters()]
    outputs, last = ours(inputs, state, sizes=sizes)
    results = [outputs, *last.values()]
    loss = sum((tensor * draw(*tensor.shape)).sum() for tensor in results)
    return [*results, *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("sizes", [FULL, PACKING.sizes])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", FUSED)
def test_fused_equals_readable(cell: str, layers: int, sizes: tuple[int, ...]) -> None:
    ours = recurrence(cell, layers)
    pairs = zip(
        everything(ours, sizes, fused=True), everything(ours, sizes, fused=False), strict=True
    )
    for fast, plain in pairs:
        torch.testing.assert_close(fast, plain, **EXACT)


@pytest.mark.parametrize("cell", PEERS)
def test_packed_equals_torch_with_a_packed_sequence(cell: str) -> None:
    ours = recurrence(cell, layers=2)
    peer = peer_of(cell, ours, E, H)
    mine = torch.randn(len(LENGTHS), int(LENGTHS.max()), E, dtype=torch.float64, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    outputs, last = ours(PACKING.pack(mine), ours.zeros(len(LENGTHS)), sizes=PACKING.sizes)
    packed = pack_padded_sequence(theirs, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, final = peer(packed)
    weights = torch.randn(outputs.shape, dtype=torch.float64)
    (outputs * weights).sum().backward()
    (expected.data * weights).sum().backward()
    torch.testing.assert_close(outputs, expected.data)
    final_h = final[0] if cell == "lstm" else final  # torch puts rows back as they came
    torch.testing.assert_close(last["h"], final_h.transpose(0, 1)[PACKING.order])
    torch.testing.assert_close(mine.grad, theirs.grad)
    padding = torch.arange(mine.shape[1]) >= LENGTHS[:, None]
    assert (mine.grad[padding] == 0).all()


@pytest.mark.parametrize("cell", FUSED)
def test_gradients_of_gradients_exist(cell: str) -> None:
    ours = Recurrence(cell=cell, input_size=3, hidden_size=2).double()
    inputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(ours.parameters())

    def run(inputs: torch.Tensor, *unused: torch.Tensor) -> torch.Tensor:
        return ours(inputs, ours.zeros(2), sizes=(2, 2, 1))[0]

    assert torch.autograd.gradcheck(run, (inputs, *parameters))
    assert torch.autograd.gradgradcheck(run, (inputs, *parameters))


@pytest.mark.parametrize("cell", FUSED)
def test_bfloat16_stays_within_two_hundredths(cell: str, caplog: pytest.LogCaptureFixture) -> None:
    """Relative error of outputs and of every gradient, in the norm, at a size as in training."""
    ours = Recurrence(cell=cell, input_size=64, hidden_size=96, layers=2)
    inputs, weights = torch.randn(20 * 16, 64), torch.randn(20 * 16, 96)

    def run(*, half: bool, fused: bool) -> list[torch.Tensor]:
        ours.fused = fused
        x = inputs.clone().requires_grad_()
        caplog.clear()
        debug = caplog.at_level(logging.DEBUG, "captioner")
        with debug, torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs, last = ours(x, ours.zeros(16), sizes=(16,) * 20)
        assert bool(caplog.records) is not fused
        assert outputs.dtype == (torch.bfloat16 if half else torch.float32)
        assert cell != "lstm" or last["c"].dtype == torch.float32
        gradients = torch.autograd.grad((outputs.float() * weights).sum(), (x, *ours.parameters()))
        return [outputs, *gradients]

    exact = run(half=False, fused=False)
    for rounded, right in zip(run(half=True, fused=True), exact, strict=True):
        assert (rounded.float() - right).norm() < 0.02 * right.norm()


def test_the_readable_loop_is_used_if_the_fused_one_cannot_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Louder(GRU):
        pass

    calls = []
    hooked, other, half = (Recurrence(cell="gru", input_size=E, hidden_size=H) for _ in range(3))
    hooked.cells[0].of_hidden.register_forward_hook(lambda *unused: calls.append(1))
    other.cells[0] = Louder(input_size=E, hidden_size=H)
    with caplog.at_level(logging.DEBUG, "captioner"):
        for ours, dtype in ((hooked, torch.float32), (other, torch.float32), (half, torch.half)):
            ours.to(dtype)(torch.randn(B, T, E, dtype=dtype), ours.to(dtype).zeros(B))
    assert len(calls) == T
    reasons = [record.getMessage() for record in caplog.records]
    parts = ("has hooks", "Louder has no loop", "torch.float16")
    assert len(reasons) == 3
    assert all(part in reason for part, reason in zip(parts, reasons))


def test_the_loop_on_cuda_is_chosen_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    cell = GRU(input_size=E, hidden_size=H)
    monkeypatch.delenv(CHOICE, raising=False)
    assert loop_of(cell, on_gpu) is LOOPS[GRU]
    monkeypatch.setenv(CHOICE, "triton")
    assert loop_of(cell, torch.zeros(1)) is LOOPS[GRU]  # on the CPU
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert loop_of(cell, on_gpu) is LOOPS[GRU]  # Triton is not installed
    monkeypatch.setenv(CHOICE, "fast")
    with pytest.raises(
        ValueError, match="CAPTIONER_CUDA_LOOP='fast' is not known; choose plain, triton, graphs"
    ):
        loop_of(cell, on_gpu)


def test_torch_func_uses_the_readable_loop() -> None:
    ours = recurrence("lstm")
    inputs = torch.randn(3, 2, T, E, dtype=torch.float64)
    alone = torch.stack([ours(one, ours.zeros(2))[0] for one in inputs])
    batched = torch.func.vmap(lambda one: ours(one, ours.zeros(2))[0])(inputs)
    torch.testing.assert_close(batched, alone)


def test_a_graph_may_be_used_twice() -> None:
    ours = recurrence("lstm")
    inputs = torch.randn(B, T, E, dtype=torch.float64, requires_grad=True)
    loss = ours(inputs, ours.zeros(B))[0].square().sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, inputs)[0])


def test_frozen_parameters_need_no_gradient() -> None:
    ours = recurrence("rnn")
    assert isinstance(ours.cells[0], RNN)
    ours.cells[0].of_input.requires_grad_(False)
    ours(torch.randn(B, T, E, dtype=torch.float64), ours.zeros(B))[0].sum().backward()
    assert ours.cells[0].of_input.weight.grad is None
    assert ours.cells[0].of_hidden.weight.grad.abs().sum() > 0


# Packing ------------------------------------------------------------------------------------------


def test_packing_has_the_layout_of_packed_sequence() -> None:
    padded = torch.randn(len(LENGTHS), 7, E)  # wider than the longest caption
    theirs = pack_padded_sequence(padded, LENGTHS, batch_first=True, enforce_sorted=False)
    assert PACKING.sizes == tuple(theirs.batch_sizes.tolist())
    assert torch.equal(LENGTHS[PACKING.order], LENGTHS[theirs.sorted_indices])
    assert PACKING.pack(padded).shape == theirs.data.shape
    back = PACKING.pad(PACKING.pack(padded))
    for row, length in enumerate(LENGTHS.tolist()):
        assert torch.equal(back[row, :length], padded[row, :length])
        assert (back[row, length:] == 0).all()
    lengths = [4, 3, 1]  # nothing to choose between equal lengths: the same to the element
    padded = padded[:3]
    theirs = pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True)
    assert torch.equal(Packing.of(torch.tensor(lengths)).pack(padded), theirs.data)


def test_a_caption_without_words_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match=r"lengths=\[3, 0\] are not accepted"):
        Packing.of(torch.tensor([3, 0]))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_logits_equal_those_of_the_padded_batch(cell: str, layers: int) -> None:
    """And their gradients: the padding, whatever stands there, contributes exactly nothing."""
    tokenizer = build_tokenizer(["a b c d e f g"], name="word", min_count=1)
    inputs, targets = pad([[9], [4, 5, 6, 7, 8], [10, 4]], tokenizer)
    packing = Packing.of((targets != IGNORED).sum(1))
    decoder, images = show_tell(cell, layers=layers).eval(), features(3)
    options = {"label_smoothing": 0.1}

    loss = cross_entropy(decoder(images, inputs), targets, **options)
    expected = torch.autograd.grad(loss, tuple(decoder.parameters()))
    for filler in (tokenizer.vocabulary.pad, 3):
        changed = torch.where(targets == IGNORED, filler, inputs)
        logits = decoder(images, changed, packing)
        torch.testing.assert_close(logits, packing.pack(decoder(images, inputs)), **EXACT)
        packed = cross_entropy(logits, packing.pack(targets), in_place=True, **options)
        torch.testing.assert_close(packed, loss, **EXACT)
        gradients = torch.autograd.grad(packed, tuple(decoder.parameters()))
        for gradient, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, right, **EXACT)


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_in_place_equals_that_of_torch(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "captioner.training.losses.AT_ONCE", 4 * V
    )  # several parts, the last a short one
    targets = torch.randint(V, (10,))
    logits = (5 * torch.randn(10, V, dtype=torch.float64)).requires_grad_()
    right = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = torch.autograd.grad(right / 3, logits)[0]
    given = logits.detach().clone().requires_grad_()
    loss = cross_entropy(given * 1, targets, label_smoothing=smoothing, in_place=True)
    torch.testing.assert_close(loss, right, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(loss / 3, given)[0], expected, **EXACT)


def test_the_loss_in_place_makes_no_second_tensor_of_logits() -> None:
    logits = torch.randn(6, V, requires_grad=True) * 1
    logits.retain_grad()
    loss = cross_entropy(logits, torch.randint(V, (6,)), label_smoothing=0.1, in_place=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.data_ptr() == logits.data_ptr()


def test_the_loss_of_rounded_logits_is_computed_in_float32() -> None:
    logits, targets = torch.randn(50, 400).bfloat16(), torch.randint(400, (50,))
    right = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=0.1)
    loss = cross_entropy(logits.clone(), targets, label_smoothing=0.1, in_place=True)
    torch.testing.assert_close(loss, right)


def test_tanh_in_bfloat16_rounds_as_torch_does() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)  # of that type
    finite = every[every.isfinite()]
    assert torch.equal(_tanh_(finite.clone()), finite.tanh())
