"""Every decoder in every variant, with small sizes, and features for it."""

from itertools import product
from typing import Any

import torch

from captioner.models.decoders.table import DECODERS
from captioner.models.features import Features
from captioner.models.recurrence.table import CELLS

B, T, V, D, E, H, P = 3, 5, 11, 8, 7, 6, 4
SIZES: dict[str, Any] = {"embedding_size": E, "hidden_size": H, "dropout": 0.0}
ATTENDING = {**SIZES, "attention_size": 5}
SMALL = {"hidden_size": H, "heads": 3, "feedforward_size": 9, "layers": 2, "dropout": 0.0}
BASIC = ("rnn", "gru", "lstm")

VARIANTS: dict[str, dict[str, Any]] = {
    f"show_tell {image} {cell} {'tied' if tied else ''}": {
        **SIZES, "name": "show_tell", "image": image, "cell": cell, "tie_weights": tied,
        "layers": 2 if tied else 1,
    }
    for image, cell, tied in product(("x0", "h0", "every", "merge"), BASIC, (False, True))
}  # fmt: skip
for name, option in (
    ("show_attend_tell", "deep_output"),
    ("adaptive", "sentinel"),
    ("up_down", "tie_weights"),
):
    for cell, score, on in product(BASIC, ("additive", "dot"), (False, True)):
        label = f"{name} {cell} {score} {option if on else ''}"
        VARIANTS[label] = {**ATTENDING, "name": name, "cell": cell, "score": score, option: on}
    VARIANTS[f"{name} two layers, tied"] = {
        **ATTENDING, "name": name, "layers": 2, "tie_weights": True, "components": 3
    }  # fmt: skip
for positions, grid in product(("learned", "sinusoidal"), (False, True)):
    options = {"positions": positions, "grid": grid, "tie_weights": grid}
    VARIANTS[f"transformer {positions} {grid}"] = {**SMALL, "name": "transformer", **options}
OTHER_CELLS: dict[str, dict[str, Any]] = {
    f"{name} {cell}": {**SIZES, "name": name, "cell": cell}
    for name, cell in product(("show_tell", "show_attend_tell", "adaptive", "up_down"), CELLS)
    if cell not in BASIC
}
EVERY = {**VARIANTS, **OTHER_CELLS}


def build(variant: str, **changes: Any) -> Any:
    options = {**EVERY[variant], **changes}
    component = DECODERS[options.pop("name")]
    decoder = component(vocabulary_size=V, feature_size=D, **options).double()
    decoder.fit(features(30))
    return decoder.eval()


def features(rows: int = B) -> Features:
    grid = 3 * torch.randn(rows, P, D, dtype=torch.float64) + 1
    return Features(grid.mean(1) + 0.1, grid)
