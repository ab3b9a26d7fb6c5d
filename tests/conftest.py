"""Shared by all tests. captioner comes first: it guards the import of torchvision."""

import captioner  # noqa: F401, I001
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
