"""A ShowTell whose sizes are all different, and features for it."""

import torch

from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features

B, V, D, E, H = 2, 11, 8, 7, 6


def show_tell(cell: str = "lstm", **options: object) -> ShowTell:
    options = {"dropout": 0.0, **options}
    return ShowTell(
        vocabulary_size=V, feature_size=D, cell=cell, embedding_size=E, hidden_size=H, **options
    ).double()


def features(rows: int = B) -> Features:
    return Features(torch.randn(rows, D, dtype=torch.float64))
