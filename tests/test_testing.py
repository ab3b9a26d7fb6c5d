"""The checks of components, run over every table, and on components with one fault each."""

from typing import Any

import pytest
import torch
from support.small_encoder import Small
from torch import Tensor, nn

from captioner.models.decoders.show_tell import ShowTell
from captioner.models.decoders.table import DECODERS
from captioner.models.decoders.transformer import Transformer
from captioner.models.encoders.libraries import ENCODERS
from captioner.models.features import Features
from captioner.models.recurrence.cells import LSTM, Cell
from captioner.models.recurrence.table import CELLS
from captioner.models.sites import unobserved
from captioner.testing import check_cell, check_decoder, check_encoder

NETWORKS = {
    "bundled": "efficientnet_lite0",
    "timm": "test_resnet",
    "torchvision": "mnasnet0_5",
    "pixels": "gray",
    "columns": "lstm",
}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name: str) -> None:
    check_cell(CELLS[name])


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder(name: str) -> None:
    check_decoder(DECODERS[name])


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder(name: str) -> None:
    check_encoder(ENCODERS[name], NETWORKS[name], image_size=64)


def test_an_own_component() -> None:
    check_encoder(Small)
    check_decoder(ShowTell, cell="gru", layers=2, tie_weights=True)


def test_checks_do_not_change_the_random_state() -> None:
    state = torch.get_rng_state()
    check_cell(LSTM)
    check_decoder(ShowTell)
    check_encoder(Small)
    assert torch.equal(torch.get_rng_state(), state)


# Cells with a fault -------------------------------------------------------------------------------


class Remembers(LSTM):
    def step(self, gates: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        return {name: self.calls * tensor for name, tensor in super().step(gates, state).items()}


class InPlace(LSTM):
    def step(self, gates: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["c"].mul_(0.5)
        return super().step(gates, state)


class Mixes(LSTM):
    def gates(self, projected: Tensor, state: dict[str, Tensor]) -> Any:
        return super().gates(projected - projected.mean(0), state)


class Idle(LSTM):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.peephole = nn.Parameter(torch.ones(1))


class Detached(LSTM):
    def step(self, gates: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        after = super().step(gates, state)
        return {**after, "c": after["c"].detach()}


class Forgetful(LSTM):
    def step(self, gates: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"h": super().step(gates, state)["h"]}


class Unseen(LSTM):
    def gates(self, projected: Tensor, state: dict[str, Tensor]) -> Any:
        return super().gates(projected, state)


class Shown(LSTM):
    """Shows the memory to an observer, and continues with its own."""

    def step(self, gates: Any, state: dict[str, Tensor], observe: Any = unobserved) -> Any:
        after = super().step(gates, state)
        for name, tensor in after.items():
            observe(SHOWN[name], tensor)
        return after


SHOWN = {"h": "hidden", "c": "memory"}


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (nn.LSTMCell, "LSTMCell: must inherit from .*Cell"),
        (Remembers, "same input must give the same state"),
        (InPlace, "must not change their arguments"),
        (Mixes, "must not depend on other rows"),
        (Idle, "peephole gets no gradient"),
        (Detached, "finite differences"),
        (Forgetful, "step must return all of state_names"),
        (Unseen, "gates and step must take observe"),
        (Shown, "what observe returns for hidden must be used"),
    ],
)
def test_a_fault_of_a_cell_is_detected(cell: type[Cell], says: str) -> None:
    with pytest.raises(AssertionError, match=says) as error:
        check_cell(cell)
    assert "\n" not in str(error.value)


# Decoders with a fault ----------------------------------------------------------------------------


class Late(ShowTell):
    def forward(self, features: Features, inputs: Tensor, packing: Any = None) -> Tensor:
        return super().forward(features, inputs.roll(1, dims=1), packing)


class Padded(ShowTell):
    def forward(self, features: Features, inputs: Tensor, packing: Any = None) -> Tensor:
        return super().forward(features, inputs)


class Blind(ShowTell):
    def read_image(self, features: Features) -> Tensor:
        return 0 * super().read_image(features)


class Stale(ShowTell):
    def stepper(self) -> Any:
        return self._make_stepper()


class Spoils(ShowTell):
    def step(self, tokens: Tensor, state: dict[str, Tensor]) -> Any:
        logits, after = super().step(tokens, state)
        state["h"].mul_(0.5)
        return logits, after


class Positional(ShowTell):
    def __init__(self, vocabulary_size: int, feature_size: int) -> None:
        super().__init__(vocabulary_size=vocabulary_size, feature_size=feature_size)


class Unnormalized(Transformer):
    def attend(self, features: Features, inputs: Tensor, packing: Any = None) -> Any:
        logits, weights = super().attend(features, inputs, packing)
        return logits, 2 * weights


class Silent(Transformer):
    attends = False


class Crossed(ShowTell):
    """Exchanges the two hypotheses of an image."""

    def step(self, tokens: Tensor, state: dict[str, Tensor]) -> Any:
        logits, after = super().step(tokens, state)
        return (logits.roll(1, dims=0) if len(logits) > 3 else logits), after


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (Late, "forward must give what start and repeated step give"),
        (Padded, "with a packing"),
        (Blind, "each image must have an influence"),
        (Stale, "must see changed weights"),
        (Spoils, "step must not change the state"),
        (Positional, "must take vocabulary_size as a keyword-only argument"),
        (Unnormalized, "sum to 1"),
        (Silent, "attends must be true if there is a method attend"),
        (Crossed, "must not depend on others"),
    ],
)
def test_a_fault_of_a_decoder_is_detected(decoder: type[Any], says: str) -> None:
    with pytest.raises(AssertionError, match=says) as error:
        check_decoder(decoder)
    assert "\n" not in str(error.value)


def test_missing_members_of_a_decoder_are_named() -> None:
    class Lacking(nn.Module):
        def __init__(self, *, vocabulary_size: int, feature_size: int) -> None:
            super().__init__()

    with pytest.raises(
        ValueError, match="Lacking does not have attends, fit, output, start, step, "
    ):
        check_decoder(Lacking)


class Raises(ShowTell):
    def step(self, tokens: Tensor, state: dict[str, Tensor]) -> Any:
        return super().step(tokens, {"h": state["nokey"]})


class Fitless(ShowTell):
    fit = None  # type: ignore[assignment]


class Shorter(ShowTell):
    def forward(self, features: Features, inputs: Tensor, packing: Any = None) -> Tensor:
        return super().forward(features, inputs, packing)[:, :-1]


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (Raises, "Raises: step raised KeyError: 'nokey'"),
        (Fitless, "fit must be a method, not None"),
        (Shorter, r"its logits are \(3, 4, 11\), theirs \(3, 5, 11\)"),
    ],
)
def test_the_failing_method_is_named(decoder: type[Any], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_decoder(decoder)


@pytest.mark.parametrize("names", [(), None, "fi", ("f", "i"), (*"abcde",), (*"abcdefgh",)])
def test_wrong_gate_names_are_reported(names: Any) -> None:
    with pytest.raises(AssertionError, match="gate_names"):
        check_cell(type("Misnamed", (LSTM,), {"gate_names": names}))


@pytest.mark.parametrize("check", [check_cell, check_decoder, check_encoder])
def test_only_classes_are_checked(check: Any) -> None:
    name = check.__name__
    with pytest.raises(TypeError, match=f"^{name}: give the class, not 'mine:Part'$"):
        check("mine:Part")
    with pytest.raises(TypeError, match="give the class, not an object of type Linear$"):
        check(nn.Linear(1, 1))
    with pytest.raises(AssertionError, match=r"^int: must inherit from (captioner|torch)\.[\w.]+$"):
        check(int)


# Encoders with a fault ----------------------------------------------------------------------------


class Wider(Small):
    def build(self, network: str, **options: Any) -> Any:
        network, size, transform = super().build(network, **options)
        return network, size + 1, transform


class Whole(Small):
    def extract(self, network: nn.Module, images: Tensor) -> Features:
        pooled, grid = super().extract(network, images)
        return Features(pooled - pooled.mean(0), grid)


class Fixed(Small):
    def extract(self, network: nn.Module, images: Tensor) -> Features:
        return super().extract(self.first, images)

    @property
    def first(self) -> nn.Module:
        if "kept" not in self.__dict__:
            self.__dict__["kept"] = super().build("x", weights=False, image_size=None)[0]
        return self.__dict__["kept"]


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        (ShowTell, "ShowTell: must inherit from .*Encoder"),
        (Wider, "pooled must be .*feature_size=7"),
        (Whole, "must not depend on other images"),
        (Fixed, "changed weights must change the features"),
    ],
)
def test_a_fault_of_an_encoder_is_detected(encoder: type[Any], says: str) -> None:
    with pytest.raises(AssertionError, match=says) as error:
        check_encoder(encoder)
    assert "\n" not in str(error.value)
