"""The loop of a decoder with attention as CUDA graphs, in training.

A step has some twenty small kernels, and twice as many for its gradients. A graph launches those of
all steps at once; ``torch.cuda.make_graphed_callables`` captures it, forward and backward. As in
``recurrence/graphs.py``, sizes are padded to those of a bucket. Nothing reads the state after the
last word of a caption, so a padding step may compute anything: its results are left out, and get no
gradient.

Weights are inputs of the graph like everything else, and are copied into its memory: it does not
matter where an optimizer or a checkpoint puts them. The memory of a graph belongs to a run from its
forward to its backward; if it is needed a second time meanwhile, the plain loop runs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from captioner.models.decoders.decoder import State
from captioner.models.precision import multiplies_in_tf32
from captioner.models.recurrence.graphs import MOST_PADDING, Places, bucket

log = logging.getLogger(__name__)

MOST = 16
"""Graphs of a decoder. Each keeps the activations of a whole loop, some 200 MB with 128 rows."""

Graphed = Callable[..., Any]
"""``torch.cuda.make_graphed_callables``."""


class AttentionGraphs:
    """The graphs of one decoder, by what they depend on.

    Args:
        graphed: tests replace it by a function that returns its argument, on the CPU.
    """

    def __init__(self, graphed: Graphed | None = None) -> None:
        self.graphed = graphed or torch.cuda.make_graphed_callables
        self.graphs: dict[Any, Any] = {}
        self.runs: dict[Any, weakref.ref[_Run]] = {}

    def loop(
        self, decoder: nn.Module, projected: Tensor, state: State, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """As ``decoder.loop``; None if no graph is free and none can be captured.

        Args:
            decoder: has the method ``loop``.
            projected: [N, ...]; state: [B, ...] each; sizes: rows of each step.
        """
        padded = bucket(sizes)
        if sum(padded) > MOST_PADDING * sum(sizes):
            return None
        places = Places.of(sizes, padded, projected.device)
        rows = projected.new_zeros(sum(padded), *projected.shape[1:])
        rows = rows.index_copy(0, places.tokens, projected)
        weights = dict(decoder.named_parameters())
        given = (rows, *state.values(), *weights.values())
        key = (padded, tuple(state), decoder.training, *map(_kind, given), *_settings(projected))
        last = self.runs.get(key, lambda: None)()
        if last is not None and not last.done:
            return None
        if key not in self.graphs:
            self.graphs[key] = self._capture(
                _Loop(decoder, tuple(state), [*weights], padded), given
            )
        graph = self.graphs[key]
        if graph is None:
            return None
        results, attention = (part.index_select(0, places.tokens) for part in graph(*given))
        run = _Run()
        self.runs[key] = weakref.ref(run)
        results.register_hook(run.finish)  # the graph of autograd keeps the run
        return results, attention

    def _capture(self, loop: _Loop, given: tuple[Tensor, ...]) -> Any:
        """A graph of a loop, or None."""
        if sum(graph is not None for graph in self.graphs.values()) >= MOST:
            return None
        samples = tuple(part.detach().requires_grad_(part.requires_grad) for part in given)
        device = given[0].device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else None
        try:
            # A weight that is cast in the graph must be cast again in each run.
            with torch.autocast(device, dtype, enabled=half, cache_enabled=False):
                return self.graphed(loop, samples, allow_unused_input=True)
        except RuntimeError as error:
            log.warning("no CUDA graph of the attention, which runs without: %s", error)
            return None


class _Run:
    """One forward and backward by a graph."""

    def __init__(self) -> None:
        self.done = False

    def finish(self, gradient: Tensor) -> None:
        """Called at the start of backward; what follows is launched before the next forward."""
        self.done = True


class _Loop:
    """The loop as a function of tensors: projected words, the parts of the state, the weights."""

    def __init__(
        self, decoder: nn.Module, state: tuple[str, ...], weights: list[str], sizes: tuple[int, ...]
    ) -> None:
        self.module, self.state, self.sizes = _Module(decoder), state, sizes
        self.weights = [f"decoder.{name}" for name in weights]

    def __call__(self, projected: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(self.state, tensors))
        weights = dict(zip(self.weights, tensors[len(self.state) :]))
        arguments = (projected, state, self.sizes)
        results: tuple[Tensor, Tensor] = functional_call(
            self.module, weights, arguments, tie_weights=False
        )
        return results


class _Module(nn.Module):
    """The loop of a decoder as a forward pass."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = decoder

    def forward(
        self, projected: Tensor, state: Mapping[str, Tensor], sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        results: tuple[Tensor, Tensor] = self.decoder.loop(projected, state, sizes)
        return results


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.requires_grad


def _settings(tensor: Tensor) -> tuple[Any, ...]:
    """What a captured kernel depends on besides its inputs."""
    device = tensor.device
    half = torch.is_autocast_enabled(device.type)
    return device, torch.get_autocast_dtype(device.type) if half else None, multiplies_in_tf32()
