"""Graphs of the recurrence: buckets, padding steps, and who has the memory.

Only ``capture_on_cuda`` needs a GPU; ``capture`` stands in for it, and runs the work again to
"replay" it, into the same tensors. What it cannot test is done by tests/models/test_cuda.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captioner.models.packing import Packing
from captioner.models.recurrence import fused
from captioner.models.recurrence.fused import LOOPS
from captioner.models.recurrence.graphs import (
    GROUPS,
    MULTIPLE,
    UNUSED,
    Graphs,
    Places,
    Run,
    bucket,
)
from captioner.models.recurrence.unroll import Recurrence

E, H = 7, 6
SIZES = (9, 9, 7, 4, 3, 2, 1)
CELLS = ("rnn", "gru", "lstm")
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def flatten(results: Any) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    else:
        for part in results:
            yield from flatten(part)


def capture(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Stands in for a CUDA graph: the results are always in the same tensors."""
    results = work()

    def replay() -> None:
        for static, new in zip(flatten(results), flatten(work())):
            static.copy_(new)

    return results, replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """All sequences with a gradient run as graphs."""
    made = Graphs(capture)

    def loop_for(setting: Any, learns: bool, *given: Any) -> Any:
        kind = type(setting.cell)
        return made.loop(LOOPS[kind], kind, given, setting.sizes) if learns else LOOPS[kind]

    monkeypatch.setattr(fused, "loop_for", loop_for)
    return made


def sizes_of(caption_lengths: list[int]) -> tuple[int, ...]:
    return Packing.of(torch.tensor(caption_lengths)).sizes


# Buckets ------------------------------------------------------------------------------------------


@given(lengths)
def test_a_bucket_holds_the_batch(caption_lengths: list[int]) -> None:
    sizes = sizes_of(caption_lengths)
    padded = bucket(sizes)
    assert padded[0] == sizes[0] and len(padded) % MULTIPLE == 0
    assert len(sizes) <= len(padded) < len(sizes) + MULTIPLE
    assert all(more >= rows for more, rows in zip(padded, sizes))
    assert list(padded) == sorted(padded, reverse=True)
    assert bucket(padded) == padded  # a bucket is its own
    assert len(set(padded)) <= GROUPS


def test_batches_of_similar_lengths_share_a_bucket() -> None:
    assert bucket((3, 2, 2, 1, 1)) == (3, 3, 3, 3, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    batches = [(10 + torch.randint(0, 3, (128,), generator=generator)).tolist() for _ in range(50)]
    assert {bucket(sizes_of(batch)) for batch in batches} == {(128,) * 12}


@given(lengths)
def test_places_are_those_of_the_same_rows_and_steps(caption_lengths: list[int]) -> None:
    sizes = sizes_of(caption_lengths)
    padded = bucket(sizes)
    layout = [(step, row) for step, rows in enumerate(padded) for row in range(rows)]
    real = [(step, row) for step, rows in enumerate(sizes) for row in range(rows)]
    places = Places.of(sizes, padded, torch.device("cpu"))
    assert [layout[place] for place in places.tokens] == real
    ends = sorted(caption_lengths, reverse=True)
    assert [layout[place] for place in places.last] == [(n - 1, row) for row, n in enumerate(ends)]


# Results ------------------------------------------------------------------------------------------


def everything(ours: Recurrence, sizes: tuple[int, ...], *, half: bool = False) -> list[Tensor]:
    """Outputs, last state, and gradients of inputs, first state and parameters."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(ours.first.of_input.weight)

    inputs, weights = draw(sum(sizes), E).requires_grad_(), draw(sum(sizes), H)
    state = {name: draw(*zero.shape) for name, zero in ours.zeros(sizes[0]).items()}
    given = [inputs, *(tensor.requires_grad_() for tensor in state.values()), *ours.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs, last = ours(inputs, state, sizes=sizes)
    loss = (outputs * weights).sum() + sum((part**2).sum() for part in last.values())
    return [outputs, *last.values(), *torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("sizes", [SIZES, (1,), (2, 2, 1), (5,) * 4])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(
    cell: str, layers: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.models.recurrence.graphs.MOST_PADDING", 9)
    ours = Recurrence(cell=cell, input_size=E, hidden_size=H, layers=layers).double()
    expected = everything(ours, sizes)
    made = Graphs(capture)
    monkeypatch.setattr(
        fused,
        "loop_for",
        lambda setting, learns, *given: made.loop(
            LOOPS[type(setting.cell)], type(setting.cell), given, setting.sizes
        ),
    )
    for _ in range(2):  # the second time, the memory has the gates of the first
        for result, right in zip(everything(ours, sizes), expected, strict=True):
            torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)
    assert sum(map(len, made.graphs.values())) == layers


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing_in_bfloat16(cell: str, graphs: Graphs) -> None:
    ours = Recurrence(cell=cell, input_size=E, hidden_size=H)
    ours.fused = False
    exact = everything(ours, SIZES)
    ours.fused = True
    results = everything(ours, SIZES, half=True)
    assert graphs.graphs
    for result, right in zip(results, exact, strict=True):
        assert (result.float() - right).norm() < 0.02 * right.norm()
    assert cell != "lstm" or results[2].dtype == torch.float32  # c


@pytest.mark.parametrize("cell", CELLS)
def test_a_padding_step_keeps_the_state_to_the_bit(cell: str, graphs: Graphs) -> None:
    """The last state of a row whose steps are mostly padding, and its gradient."""
    ours = Recurrence(cell=cell, input_size=E, hidden_size=H)
    inputs = torch.randn(7, E)
    part = ("h", "h", "c")[CELLS.index(cell)]

    def last(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x = inputs.clone().requires_grad_()
        value = ours(x, ours.zeros(sizes[0]), sizes=sizes)[1][part][-1, 0]
        return value, torch.autograd.grad(value.sum(), x)[0]

    short = last((2, 1, 1, 1, 1, 1))  # the second row ends after the first step
    assert len(graphs.graphs) == 1
    ours.fused = False
    plain = last((2, 1, 1, 1, 1, 1))
    torch.testing.assert_close(short, plain, rtol=1e-6, atol=1e-7)
    assert (short[1][[0, 2, 3, 4, 5, 6]] == 0).all()  # exactly: they are of the other row


# The memory ---------------------------------------------------------------------------------------


def test_an_optimizer_step_is_seen(graphs: Graphs) -> None:
    ours = Recurrence(cell="lstm", input_size=E, hidden_size=H).double()
    everything(ours, SIZES)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.5)
    results = everything(ours, SIZES)
    assert len(graphs.graphs) == 1
    ours.fused = False
    for result, right in zip(results, everything(ours, SIZES), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_run_does_not_overwrite_the_first(cell: str, graphs: Graphs) -> None:
    ours = Recurrence(cell=cell, input_size=E, hidden_size=H).double()
    inputs = torch.randn(sum(SIZES), E, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return ours(inputs, ours.zeros(9), sizes=SIZES)[0].square().sum()

    first, second = loss(), loss()  # two graphs
    assert [len(some) for some in graphs.graphs.values()] == [2]
    expected = torch.autograd.grad(second, inputs, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(first, inputs)[0], expected)
    others = [ours(k * inputs, ours.zeros(9), sizes=SIZES)[0] for k in (2, 3)]  # take both over
    assert [len(some) for some in graphs.graphs.values()] == [len(others)]
    again = torch.autograd.grad(second, inputs)[0]
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)


def test_the_memory_of_a_run_that_is_gone_is_free(graphs: Graphs) -> None:
    ours = Recurrence(cell="gru", input_size=E, hidden_size=H)
    for _ in range(3):  # without a backward
        ours(torch.randn(sum(SIZES), E, requires_grad=True), ours.zeros(9), sizes=SIZES)
    assert [len(some) for some in graphs.graphs.values()] == [1]


def loop(graphs: Graphs, sizes: tuple[int, ...], keep: list[Any]) -> Any:
    """The loop for an LSTM of width H, of which nothing is computed."""
    kind = type(Recurrence(cell="lstm", input_size=E, hidden_size=H).first)
    rows = sizes[0]
    state = [torch.zeros(rows, H), torch.zeros(rows, H)]
    given = (torch.zeros(sum(sizes), 4 * H), torch.zeros(4 * H, H), None, state)
    keep.append(graphs.loop(LOOPS[kind], kind, given, sizes))
    return keep[-1]


def test_there_is_a_limited_number_of_graphs() -> None:
    kept: list[Any] = []
    graphs = Graphs(capture, room=2 * 20 * 4 * H)
    assert isinstance(loop(graphs, (5,) * 4, kept), Run)
    assert isinstance(loop(graphs, (2,) * 8, kept), Run)
    assert not isinstance(loop(graphs, (5,) * 8, kept), Run)  # no room
    kept.clear()
    assert not isinstance(loop(graphs, (5,) * 8, kept), Run)  # the others were used recently
    graphs.runs += UNUSED
    assert isinstance(loop(graphs, (5,) * 8, kept), Run)


def test_the_plain_loop_runs_if_nothing_can_be_captured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def fail(work: Callable[[], Any]) -> Any:
        calls.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(fail)
    for _ in range(2):
        assert not isinstance(loop(graphs, (5,) * 4, []), Run)
    assert len(calls) == len(caplog.records) == 1
    assert not isinstance(loop(Graphs(capture), (50, 1), []), Run)  # mostly padding
