"""The table of metrics, and their names on the command line."""

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
    """The metrics and scores that names refer to.

    Args:
        names: of metrics ("bleu") or single scores ("BLEU-4"); case, blanks, hyphens and
            underscores make no difference.

    Returns:
        metric, a key of METRICS -> the selected ones of its scores.

    Raises:
        ValueError: a name is neither.
    """
    known: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, metric in METRICS.items():
        known |= {_letters(score): (name, (score,)) for score in metric.scores}
    known |= {_letters(name): (name, metric.scores) for name, metric in METRICS.items()}
    wanted: dict[str, tuple[str, ...]] = {}
    for name in names:
        if _letters(name) not in known:
            scores = (score for metric in METRICS.values() for score in metric.scores)
            raise unknown("metrics", name, dict.fromkeys((*METRICS, *scores)))
        key, selected = known[_letters(name)]
        wanted[key] = tuple(dict.fromkeys((*wanted.get(key, ()), *selected)))
    return wanted


def _letters(name: str) -> str:
    """A name without case, blanks, hyphens and underscores."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
