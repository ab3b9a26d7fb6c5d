"""Few examples of a property in ``make test``, many in ``make battery``."""

from collections.abc import Callable
from typing import Any

import hypothesis

FEW = 25


def few(test: Callable[..., Any]) -> Callable[..., Any]:
    """Try FEW examples, in the battery as many as its profile has."""
    many = hypothesis.settings().max_examples
    default = hypothesis.settings.get_profile("any").max_examples
    return hypothesis.settings(max_examples=FEW if many == default else many)(test)
