"""The table of metrics, and the names by which people ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from captioner.config import unknown
from captioner.metrics import bleu, cider, clip, diversity, meteor, rouge, spice
from captioner.metrics.corpus import Metric, Rows

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "bleu": bleu.METRIC,
        "rouge-l": rouge.METRIC,
        "cider-d": cider.METRIC,
        "cider": cider.PLAIN,
        "meteor": meteor.METRIC,
        "spice": spice.METRIC,
        "diversity": diversity.METRIC,
        "clip": clip.METRIC,
    }
)
"""Name of a metric -> how it is computed, and the scores that it gives."""

FAMILIES: Mapping[str, Callable[[Rows], Mapping[str, Rows]]] = MappingProxyType(
    {family: score for metric in METRICS.values() for family, score in metric.families.items()}
)
"""Name of stored rows -> what turns their mean into scores."""


def named(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The metrics and scores that people's names for them mean.

    Args:
        names: each of a metric ("bleu") or of one score ("BLEU-4"); case, blanks, hyphens and
            underscores make no difference.

    Returns:
        metric, a key of METRICS -> those of its scores that are meant.

    Raises:
        ValueError: a name of neither.
    """
    meant: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, metric in METRICS.items():
        meant |= {_letters(score): (name, (score,)) for score in metric.scores}
    meant |= {_letters(name): (name, metric.scores) for name, metric in METRICS.items()}
    wanted: dict[str, tuple[str, ...]] = {}
    for name in names:
        if _letters(name) not in meant:
            scores = (score for metric in METRICS.values() for score in metric.scores)
            raise unknown("metrics", name, dict.fromkeys((*METRICS, *scores)))
        key, asked = meant[_letters(name)]
        wanted[key] = tuple(dict.fromkeys((*wanted.get(key, ()), *asked)))
    return wanted


def _letters(name: str) -> str:
    """A name without case, blanks, hyphens and underscores."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
