"""Graphs of the loop with attention: padding steps, and who has the memory.

Only ``torch.cuda.make_graphed_callables`` needs a GPU; ``graphed`` stands in for it, with one
memory for all runs of a graph. What it cannot test is done by tests/models/test_cuda.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.decoders import EVERY, V, build, features
from torch import Tensor

from captioner.models.decoders import attention_decoder, attention_graphs
from captioner.models.decoders.attention_graphs import AttentionGraphs
from captioner.models.packing import Packing

ATTENDING = [n for n in EVERY if n.startswith(("show_attend_tell", "adaptive", "up_down"))]
ROWS = 9
LENGTHS = (9, 9, 7, 7, 4, 3, 3, 1, 1)


def graphed(loop: Callable[..., Any], samples: tuple[Tensor, ...], **options: Any) -> Any:
    """Stands in for CUDA graphs: inputs are copied to, and results read from, the same tensors."""
    assert options == {"allow_unused_input": True}
    own = [sample.detach().clone().requires_grad_(sample.requires_grad) for sample in samples]
    learned = [tensor for tensor in own if tensor.requires_grad]
    now: dict[str, Any] = {}

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                for static, tensor in zip(own, given, strict=True):
                    static.copy_(tensor)
            with torch.enable_grad():
                now["results"] = loop(*own)
            return tuple(result.detach() for result in now["results"])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            found = torch.autograd.grad(now["results"], learned, gradients, allow_unused=True)
            left = iter(found)
            return tuple(next(left) if tensor.requires_grad else None for tensor in own)

    return Replay.apply


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_decoder, "graphs_on", lambda tensor: True)


def run(decoder: Any, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Logits, weights, and the gradients of all parameters."""
    loss, results = forward(decoder, lengths, seed)
    parameters = tuple(decoder.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [*results, *(g for g in gradients if g is not None)]


def forward(decoder: Any, lengths: tuple[int, ...], seed: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(seed)
    packing = Packing.of(torch.tensor(lengths))
    inputs = torch.randint(4, V, (len(lengths), max(lengths)))
    logits, weights = decoder.attend(features(len(lengths)), inputs, packing)
    parts = [(part * torch.randn_like(part)).sum() for part in (logits, weights)]
    return parts[0] + parts[1], [logits, weights]


def equal(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ATTENDING)
def test_results_and_gradients_are_those_of_the_plain_loop(variant: str, on: None) -> None:
    plain = build(variant)
    decoder = copy.deepcopy(plain)
    decoder.graphs = AttentionGraphs(graphed)
    plain.graphs = AttentionGraphs(_no_graph)
    other = (9, 8, 8, 7, 4, 3, 2, 2, 1)  # of the same bucket
    for seed, lengths in enumerate((LENGTHS, other, LENGTHS)):
        equal(run(decoder, lengths, seed), run(plain, lengths, seed))
    assert len(decoder.graphs.graphs) == 1


def _no_graph(*_: Any, **options: Any) -> None:
    raise RuntimeError("out of memory")


def test_weights_that_moved_are_used(on: None) -> None:
    plain = build(ATTENDING[0])
    decoder = copy.deepcopy(plain)
    decoder.graphs, plain.graphs = AttentionGraphs(graphed), AttentionGraphs(_no_graph)
    run(decoder)
    for one in (plain, decoder):
        one.of_context.weight.data = 2 * one.of_context.weight.data
    equal(run(decoder), run(plain))
    assert len(decoder.graphs.graphs) == 1


def test_two_forwards_before_a_backward_do_not_share_the_memory(on: None) -> None:
    plain = build(ATTENDING[0])
    decoder = copy.deepcopy(plain)
    decoder.graphs, plain.graphs = AttentionGraphs(graphed), AttentionGraphs(_no_graph)
    found = []
    for one in (decoder, plain):
        first, second = (forward(one, LENGTHS, seed)[0] for seed in (1, 2))
        found.append(torch.autograd.grad(first + second, one.gate.weight)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    abandoned = forward(decoder, LENGTHS, 3)  # no backward
    taken = next(iter(decoder.graphs.runs.values()))
    assert taken() is not None and not taken().done
    del abandoned
    assert taken() is None  # so that its graph is free
    equal(run(decoder), run(plain))


def test_graphs_are_bounded_and_told_apart(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = build(ATTENDING[0])
    decoder.graphs = AttentionGraphs(graphed)
    run(decoder)
    decoder.train()
    run(decoder)
    run(decoder, (5, 5, 5))
    assert len(decoder.graphs.graphs) == 3
    monkeypatch.setattr(attention_graphs, "MOST", 3)
    expected = run(copy.deepcopy(decoder), (3, 2))
    equal(run(decoder, (3, 2)), expected)
    assert [graph is None for graph in decoder.graphs.graphs.values()] == [False] * 3 + [True]


def test_a_batch_with_much_padding_and_one_without_a_graph_run_plainly(
    on: None, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = build(ATTENDING[0])
    decoder.graphs = AttentionGraphs(_no_graph)
    run(decoder, (1,))  # padded to four steps
    assert not decoder.graphs.graphs
    run(decoder)
    run(decoder)
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph of the attention, which runs without: out of memory"
    ]


def test_a_copy_has_graphs_of_its_own(on: None) -> None:
    decoder = build(ATTENDING[0])
    decoder.graphs = AttentionGraphs(graphed)
    run(decoder)
    assert copy.deepcopy(decoder).graphs is None
    assert "graphs" not in decoder.state_dict()
