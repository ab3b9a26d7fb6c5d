"""Checks that a cell, decoder, encoder or data layout satisfies its interface.

    from captioner.testing import check_decoder
    from mine import Bigram

    def test_bigram():
        check_decoder(Bigram)

The checks are for the classes of the package and for your own. A check raises an AssertionError or
a ValueError with one line that says what is required, or a TypeError that says how to call the
check. It computes in float64 on the CPU with small sizes and takes about a second. It does not
check that a component computes the right values: that needs a test against an independent
reference.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from captioner.data.reader_check import check_data_layout
from captioner.models.decoders.decoder import Attends, Decoder, State, Stepper
from captioner.models.encoders.encoder import Encoder
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.unroll import readable
from captioner.models.sites import Observe, takes_observer, unobserved
from captioner.parts import require_interface

__all__ = ["check_cell", "check_data_layout", "check_decoder", "check_encoder"]

B, T, V, D, E, H, P = 3, 5, 11, 8, 7, 6, 4


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers in each check; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _require(fulfilled: bool, part: type[Any], demand: str) -> None:
    if not fulfilled:
        raise AssertionError(f"{part.__name__}: {demand}")


def _require_class(part: object, base: type[Any], check: str) -> None:
    """Check that a part is a class, and one that inherits from a base."""
    if not inspect.isclass(part):
        simple = isinstance(part, (str, int, float, type(None)))
        description = repr(part) if simple else f"an object of type {type(part).__name__}"
        raise TypeError(f"{check}: give the class, not {description}")
    inherits = f"must inherit from {base.__module__}.{base.__qualname__}"
    _require(issubclass(part, base), part, inherits)


class _Raised(AssertionError):
    """A method of a component raised an exception; the message names both."""


def _naming(part: type[Any], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose exceptions become an AssertionError that names it."""

    @functools.wraps(method)
    def named(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except _Raised:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            demand = f"{part.__name__}: {name} raised {type(error).__name__}: {reason}"
            raise _Raised(demand) from error

    return named


def _equal(result: Tensor, expected: Tensor, *, rtol: float = 1e-6, atol: float = 1e-9) -> bool:
    return result.shape == expected.shape and torch.allclose(result, expected, rtol=rtol, atol=atol)


# Cells --------------------------------------------------------------------------------------------


@_seeded()
def check_cell(part: type[Any]) -> None:
    """Check a class against the interface ``Cell``.

    Its constructor takes ``input_size`` and ``hidden_size``. ``project``, ``gates``, ``step`` and
    ``zeros`` have the right shapes and names, change none of their arguments, compute each
    row independently and are deterministic; a whole sequence gives the result of repeated steps;
    gradients reach all parameters and equal finite differences; every value is observed, and what
    the observer returns is used.

    Args:
        part: the class.

    Raises:
        AssertionError: one of these is not fulfilled.
        TypeError: it is not a class.
    """
    _require_class(part, Cell, "check_cell")
    names = getattr(part, "gate_names", None)
    right = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
    _require(bool(right), part, f"gate_names must be a tuple of texts, not {names!r}")
    cell = part(input_size=E, hidden_size=H).double()
    _check_step(part, cell)
    _check_sequence(part, cell)
    _check_cell_gradients(part)
    _check_observed(part, cell)


def _check_step(part: type[Any], cell: Cell) -> None:
    _require("h" in cell.state_names, part, "state_names must have h")
    zeros = cell.zeros(B)
    _require(set(zeros) == set(cell.state_names), part, "zeros must give all of state_names")
    x = torch.randn(B, E, dtype=torch.float64)
    state = {name: torch.randn_like(tensor) for name, tensor in zeros.items()}
    projected = cell.project(x)  # [B, gates * H]
    width = len(cell.gate_names) * H
    names = ", ".join(cell.gate_names)
    rule = f"project must give [B, {width}]: gates * H, of the gate_names {names}"
    _require(projected.shape == (B, width), part, rule)
    before = [tensor.clone() for tensor in (projected, *state.values())]
    try:
        gates = cell.gates(projected, state)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        demand = f"gates raised {reason}; do the gate_names {names} fit? They set the width {width}"
        raise AssertionError(f"{part.__name__}: {demand}") from error
    _require(hasattr(gates, "_asdict"), part, "gates must return a NamedTuple")
    shapes = all(gate.shape == (B, H) for gate in gates)
    _require(shapes, part, f"each gate must be [B, H]; gate_names are {names}")
    after = cell.step(gates, state)
    _require(set(after) == set(state), part, "step must return all of state_names")
    _require(
        all(tensor.shape == (B, H) for tensor in after.values()), part, "states must be [B, H]"
    )
    unchanged = map(torch.equal, before, (projected, *state.values()))
    _require(all(unchanged), part, "gates and step must not change their arguments")
    again = cell(x, state)
    first = cell(x[:1], {name: tensor[:1] for name, tensor in state.items()})
    for name, tensor in after.items():
        _require(_equal(again[name], tensor), part, "the same input must give the same state")
        _require(_equal(first[name], tensor[:1]), part, "a row must not depend on other rows")


def _check_observed(part: type[Any], cell: Cell) -> None:
    """All gates and states are observed, and what an observer returns is used."""
    takes = takes_observer(cell.gates) and takes_observer(cell.step)
    _require(takes, part, "gates and step must take observe, so that their values can be traced")
    projected = cell.project(torch.randn(B, E, dtype=torch.float64))  # [B, gates * H]
    state = {name: torch.randn_like(tensor) for name, tensor in cell.zeros(B).items()}

    def run(observe: Observe) -> State:
        return cell.step(cell.gates(projected, state, observe), state, observe)

    sites: list[str] = []

    def note(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        sites.append(site)
        return value

    plain, noted = run(unobserved), run(note)
    same = all(torch.equal(noted[name], tensor) for name, tensor in plain.items())
    _require(same, part, "an observer that changes nothing must change nothing")
    wanted = {"hidden", "memory"} if "c" in cell.state_names else {"hidden"}
    missing = ", ".join(sorted(wanted - set(sites)))
    _require(not missing, part, f"step must call observe with {missing}")
    for changed in sites:

        def change(site: str, value: Tensor, layer: int | None = None) -> Tensor:
            return value + 0.1 if site == changed else value  # noqa: B023

        after = run(change)
        used = any(not torch.equal(after[name], tensor) for name, tensor in plain.items())
        _require(used, part, f"what observe returns for {changed} must be used")


def _check_sequence(part: type[Any], cell: Cell) -> None:
    sizes = (B, B - 1, 1)
    inputs = torch.randn(sum(sizes), E, dtype=torch.float64)
    h, last = readable(cell, inputs, cell.zeros(B), sizes)
    _require(h.shape == (len(inputs), H), part, "a sequence must give h of each step, [N, H]")
    for row in range(B):
        state, first = cell.zeros(1), 0
        for rows in sizes:
            if row < rows:
                state = cell(inputs[first + row : first + row + 1], state)
            first += rows
        for name, tensor in state.items():
            same = _equal(last[name][row : row + 1], tensor)
            _require(same, part, f"{name} after a sequence must be that after its steps")


def _check_cell_gradients(part: type[Any]) -> None:
    cell = part(input_size=3, hidden_size=2).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)  # [T, B, input_size]

    def run(x: Tensor, *_: Tensor) -> Tensor:
        state = cell.zeros(3)
        for step in x:
            state = cell(step, state)
        return torch.cat(list(state.values()))

    learned = dict(cell.named_parameters())
    gradients = torch.autograd.grad(run(x).square().sum(), [*learned.values()], allow_unused=True)
    for name, gradient in zip(learned, gradients):
        _require(gradient is not None and bool(gradient.any()), part, f"{name} gets no gradient")
    correct = torch.autograd.gradcheck(run, (x, *learned.values()), raise_exception=False)
    _require(correct, part, "gradients must equal finite differences")


# Decoders -----------------------------------------------------------------------------------------

_SMALL = {
    **{"embedding_size": E, "hidden_size": H, "attention_size": 5, "feedforward_size": 9},
    **{"heads": 3, "dropout": 0.0},
}


@_seeded()
def check_decoder(part: type[Any], **options: Any) -> None:
    """Check a class against the interface ``Decoder``.

    Its constructor takes ``vocabulary_size`` and ``feature_size``. ``forward`` gives the
    result of ``start`` and repeated ``step``, also with a packing; ``stepper`` gives the same,
    without gradient and after weights have changed; steps do not change their input state, and
    hypotheses do not influence each other; each image is used; ``attend`` gives the logits of
    ``forward`` and weights that sum to 1; gradients reach all parameters; evaluation mode is
    deterministic; weights can be loaded into another instance.

    Args:
        part: the class.
        options: of its constructor; common sizes have small defaults, and dropout is 0.

    Raises:
        AssertionError: one of these is not fulfilled.
        ValueError: members of ``Decoder`` are missing.
        TypeError: it is not a class.
    """
    _require_class(part, nn.Module, "check_decoder")
    decoder = _build(part, options)
    features, inputs = _features(B), torch.randint(V, (B, T))
    _check_members(part, decoder)
    _check_state(part, decoder, features)
    logits = _read(decoder, decoder.start(features), inputs)  # [B, T, V]
    shape = tuple(logits.shape)
    _require(shape == (B, T, V), part, f"step must give logits [R, V]; T steps give {shape}")
    _check_forward(part, decoder, features, inputs, logits)
    _check_hypotheses(part, decoder, features, inputs, logits)
    if decoder.attends:
        _check_attention(part, cast(Attends, decoder), features, inputs, logits)
    _check_decoder_gradients(part, decoder, features, inputs)
    if takes_observer(decoder.start) and takes_observer(decoder.step):
        _check_sites(part, decoder, features, inputs)
    loaded = _build(part, options)
    loaded.load_state_dict(cast(nn.Module, decoder).state_dict())
    _require(_equal(loaded(features, inputs), logits), part, "loaded weights must give the same")
    _check_stepper(part, decoder, features, inputs)


def _build(part: type[Any], options: dict[str, Any]) -> Any:
    parameters = inspect.signature(part).parameters
    for name in ("vocabulary_size", "feature_size"):
        kind = parameters[name].kind if name in parameters else None
        keyword = kind is inspect.Parameter.KEYWORD_ONLY
        _require(keyword, part, f"the constructor must take {name} as a keyword-only argument")
    sizes = {name: value for name, value in _SMALL.items() if name in parameters}
    decoder = part(vocabulary_size=V, feature_size=D, **{**sizes, **options})
    require_interface(decoder, Decoder, part.__name__)
    for name in ("fit", "start", "step", "forward", "stepper"):
        method = getattr(decoder, name)
        _require(callable(method), part, f"{name} must be a method, not {method!r}")
        setattr(decoder, name, _naming(part, name, method))
    decoder.double().fit(_features(30))
    return decoder.eval()


def _features(images: int) -> Features:
    grid = 3 * torch.randn(images, P, D, dtype=torch.float64) + 1
    return Features(grid.mean(1) + 0.1, grid)


def _read(decoder: Decoder | Stepper, state: State, inputs: Tensor) -> Tensor:
    """Logits of inputs [R, T], read step by step from a state: [R, T, V]."""
    steps = []
    for tokens in inputs.T:
        logits, state = decoder.step(tokens, state)
        steps.append(logits)
    return torch.stack(steps, dim=1)


def _check_members(part: type[Any], decoder: Decoder) -> None:
    _require(
        decoder.attends is hasattr(decoder, "attend"),
        part,
        "attends must be true if there is a method attend, else false",
    )
    embedding = isinstance(decoder.words, nn.Embedding) and decoder.words.num_embeddings == V
    _require(embedding, part, "words must be an nn.Embedding with vocabulary_size rows")
    if not decoder.uses_grid:
        features, inputs = _features(B), torch.randint(V, (B, T))
        same = _equal(decoder(Features(features.pooled), inputs), decoder(features, inputs))
        _require(same, part, "uses_grid is false, so the grid must have no influence")


def _check_state(part: type[Any], decoder: Decoder, features: Features) -> None:
    state = decoder.start(features)
    _require(isinstance(state, dict) and bool(state), part, "start must give a dict of tensors")
    rows = all(len(tensor) == B for tensor in state.values())
    _require(rows, part, "after start, each tensor of the state must have one row per image")
    before = {name: tensor.clone() for name, tensor in state.items()}
    tokens = torch.randint(V, (B,))
    result = decoder.step(tokens, state)
    pair = isinstance(result, tuple) and len(result) == 2
    _require(pair, part, "step must return two values: logits and the new state")
    first, after = result
    unchanged = all(torch.equal(state[name], tensor) for name, tensor in before.items())
    _require(unchanged, part, "step must not change the state that it is given")
    _require(set(after) == set(before), part, "step must return a state with the same names")
    for name, tensor in after.items():
        if name.startswith("image."):
            same = torch.equal(tensor, before[name])
            _require(same, part, f"{name} belongs to images, so step must not change it")
    second, _ = decoder.step(tokens, state)
    _require(torch.equal(first, second), part, "the same step must give the same logits again")


def _check_forward(
    part: type[Any], decoder: Decoder, features: Features, inputs: Tensor, logits: Tensor
) -> None:
    result = decoder(features, inputs)
    rule = "forward must give what start and repeated step give"
    shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
    expected = tuple(logits.shape)
    _require(shape == expected, part, f"{rule}: its logits are {shape}, theirs {expected}")
    _require(_equal(result, logits), part, rule)
    _require(torch.equal(result, decoder(features, inputs)), part, "eval must be deterministic")
    packing = Packing.of(torch.tensor([2, 5, 4]))
    packed = _equal(decoder(features, inputs, packing), packing.pack(logits))
    _require(packed, part, "with a packing, forward must give packing.pack of its logits")
    exchanged = decoder(features.rows(torch.tensor([1, 2, 0])), inputs)
    changes = (exchanged - logits).abs().amax(dim=(1, 2))  # [B]
    _require(bool((changes > 1e-6).all()), part, "each image must have an influence on the logits")


def _check_hypotheses(
    part: type[Any], decoder: Decoder, features: Features, inputs: Tensor, logits: Tensor
) -> None:
    """Two consecutive hypotheses per image: the first reads the inputs, the second other tokens."""
    state = {
        name: tensor if name.startswith("image.") else tensor.repeat_interleave(2, dim=0)
        for name, tensor in decoder.start(features).items()
    }
    other = (inputs + 1) % V
    both = torch.stack([inputs, other], dim=1).flatten(0, 1)  # [2 * B, T]
    result = _read(decoder, state, both).unflatten(0, (B, 2))
    _require(_equal(result[:, 0], logits), part, "a hypothesis must not depend on others")
    _require(
        _equal(result[:, 1], decoder(features, other)),
        part,
        "the hypotheses of an image must all use that image",
    )


def _check_attention(
    part: type[Any], decoder: Attends, features: Features, inputs: Tensor, logits: Tensor
) -> None:
    result, weights = decoder.attend(features, inputs)
    _require(_equal(result, logits), part, "attend must give the logits of forward")
    right = weights.ndim == 3 and weights.shape[:2] == (B, T)
    _require(right, part, "attend must give weights [B, T, P]")
    _require(
        bool((weights >= 0).all()) and _equal(weights.sum(2), torch.ones_like(weights[..., 0])),
        part,
        "attention weights must be ≥ 0 and sum to 1",
    )
    packing = Packing.of(torch.tensor([2, 5, 4]))
    _, packed = decoder.attend(features, inputs, packing)
    _require(
        _equal(packed, packing.pack(weights)),
        part,
        "with a packing, attend must give packing.pack of its weights",
    )


def _check_decoder_gradients(
    part: type[Any], decoder: Decoder, features: Features, inputs: Tensor
) -> None:
    learned = {n: p for n, p in cast(nn.Module, decoder).named_parameters() if p.requires_grad}
    loss = decoder(features, inputs).square().sum()
    gradients = torch.autograd.grad(loss, [*learned.values()], allow_unused=True)
    for name, gradient in zip(learned, gradients):
        _require(gradient is not None and bool(gradient.any()), part, f"{name} gets no gradient")


def _check_stepper(part: type[Any], decoder: Decoder, features: Features, inputs: Tensor) -> None:
    made = decoder.stepper()
    start = _naming(part, "start of the stepper", made.start)
    stepper = Stepper(start, _naming(part, "step of the stepper", made.step))
    for changed in (False, True):
        if changed:
            with torch.no_grad():
                for parameter in decoder.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        result = _read(stepper, stepper.start(features), inputs)
        expected = _read(decoder, decoder.start(features), inputs)
        demand = "a stepper must see changed weights" if changed else "stepper must give the same"
        _require(_equal(result, expected), part, demand)
        _require(not result.requires_grad, part, "a stepper must compute without gradient")


def _check_sites(part: type[Any], decoder: Decoder, features: Features, inputs: Tensor) -> None:
    """What ``observe`` is called with has the right rows, and what it returns is used."""
    plain, _ = decoder.step(inputs[:, 0], decoder.start(features))
    sites: list[tuple[str, int | None]] = []

    def note(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        _require(len(value) == B, part, f"{site} must have one row per image and hypothesis")
        sites.append((site, layer))
        return value

    noted, _ = decoder.step(inputs[:, 0], decoder.start(features, note), note)
    _require(
        torch.equal(noted, plain), part, "an observer that changes nothing must change nothing"
    )
    for changed in sites:

        def change(site: str, value: Tensor, layer: int | None = None) -> Tensor:
            return 0.5 * value + 0.1 if (site, layer) == changed else value  # noqa: B023

        logits, state = decoder.step(inputs[:, 0], decoder.start(features, change), change)
        logits, _ = decoder.step(inputs[:, 1], state, change)
        expected, _ = decoder.step(
            inputs[:, 1], decoder.step(inputs[:, 0], decoder.start(features))[1]
        )
        used = not torch.equal(logits, expected)
        _require(used, part, f"what observe returns for {changed[0]} must be used")


# Encoders -----------------------------------------------------------------------------------------


@_seeded()
def check_encoder(part: type[Any], network: str | None = None, **options: Any) -> None:
    """Check a class against the interface ``Encoder``.

    It gives pooled [B, D] and, if any, a grid [B, P, D], where D is ``feature_size``; the transform
    makes images of the right size, and uint8 pixels give the features of floats. A
    frozen encoder has no gradient, stays in evaluation mode, encodes each image independently, is
    deterministic and uses changed weights; a trainable one has gradients. Copies give the same.

    Args:
        part: the class.
        network: a name that its ``build`` accepts; None: the name of the class, which is what
            ``encoder=package.module:Class`` passes.
        options: of its constructor; ``pretrained`` is false unless given.

    Raises:
        AssertionError: one of these is not fulfilled.
        TypeError: it is not a class.
    """
    _require_class(part, Encoder, "check_encoder")
    arguments = {"network": network or part.__name__, "pretrained": False, **options}
    encoder = part(**arguments)
    side = encoder.transform.size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    images = encoder.transform.normalise_batch(pixels)
    _check_features(part, encoder, images)
    same = _equal(encoder(pixels).pooled, encoder(images).pooled, rtol=1e-3, atol=1e-4)
    _require(same, part, "uint8 pixels must give the features of normalized floats")
    _check_frozen(part, encoder, images)
    _check_trainable(part, part(**{**arguments, "trainable": True}), images)


def _check_features(part: type[Any], encoder: Encoder, images: Tensor) -> None:
    pooled, grid = encoder(images)
    size = encoder.feature_size
    _require(pooled.shape == (2, size), part, f"pooled must be [B, D] with D=feature_size={size}")
    if grid is not None:
        right = grid.ndim == 3 and grid.shape[0] == 2 and grid.shape[2] == size
        _require(right, part, f"the grid must be [B, P, D] with D=feature_size={size}")
    finite = all(bool(part.isfinite().all()) for part in (pooled, grid) if part is not None)
    _require(finite, part, "features must be finite")


def _check_frozen(part: type[Any], encoder: Encoder, images: Tensor) -> None:
    near = {"rtol": 1e-3, "atol": 1e-4}
    encoder.train()
    _require(not encoder.backbone.training, part, "a frozen encoder must stay in evaluation mode")
    pooled = encoder(images).pooled
    _require(not pooled.requires_grad, part, "a frozen encoder must compute without gradient")
    _require(torch.equal(encoder(images).pooled, pooled), part, "an encoder must be deterministic")
    alone = encoder(images[:1]).pooled
    _require(_equal(alone, pooled[:1], **near), part, "an image must not depend on other images")
    copied = copy.deepcopy(encoder)
    _require(_equal(copied(images).pooled, pooled, **near), part, "a copy must give the same")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    changed = not torch.equal(encoder(images).pooled, pooled)
    _require(changed, part, "changed weights must change the features")


def _check_trainable(part: type[Any], encoder: Encoder, images: Tensor) -> None:
    features = encoder(images)
    _require(features.pooled.requires_grad, part, "a trainable encoder must have gradients")
    features.pooled.square().sum().backward()
    learned = any(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
    _require(learned, part, "gradients must reach the parameters of a trainable encoder")
