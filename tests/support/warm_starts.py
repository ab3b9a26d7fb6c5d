"""Configurations of runs that start from the weights of another."""

from collections.abc import Sequence

from captioner.config import Config, compose
from captioner.training.train import inherit, read_weights


def inherited(overrides: Sequence[str]) -> Config:
    """What `captioner train` composes of overrides, one of which is ``resume_weights=RUN``."""
    config = compose(overrides)
    return inherit(config, overrides, read_weights(config))
