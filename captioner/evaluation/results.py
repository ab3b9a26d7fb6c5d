"""Results on disk: what ``captioner evaluate`` left, found, read, and put together by seeds."""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from captioner import runs
from captioner.checkpoints import bundle
from captioner.metrics.signature import Signature, from_json
from captioner.metrics.statistics import Statistics
from captioner.runs import CONFIG, SCORES, STATISTICS

MAY_DIFFER = ("decoding", "captioner", "training")
"""Parts of a signature that two systems may differ in; it is said where they do."""
MAY_DIFFER_INSIDE = ("captioner",)
"""Parts that seeds of one system may differ in."""

REFERENCES = "references"
"""The part of a signature that is a hash of the references; an older evaluation has none."""

_DAMAGES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, zlib.error)
"""What else a damaged archive of arrays raises on its way through zipfile and numpy."""

_SEED_KEYS = ("seed", "run_dir", "resume")  # what two seeds of one configuration differ in


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        folder: where it lies.
        scores: metric to score.
        signatures: metric to signature.
        signature: what all signatures share.
        missing: metric to the reason why it was not computed.
        statistics: rows of the images.
        config: the run's config.yaml; None where there is none.
        evaluated: the evaluation's own: data, split and decoding; None where there is none.
    """

    folder: Path
    scores: dict[str, float]
    signatures: dict[str, Signature]
    signature: Signature
    missing: dict[str, str]
    statistics: Statistics
    config: dict[str, Any] | None
    evaluated: dict[str, Any] | None = None

    @property
    def run(self) -> Path:
        """The run folder, or the evaluation's own where it lies in none."""
        return runs.run_of_evaluation(self.folder) or self.folder

    @property
    def decoding(self) -> str:
        """The label of the decoding options; empty where it is not known."""
        return self.signature.decoding or ""

    @property
    def references(self) -> str:
        """A hash of the references; empty where the evaluation is older than that."""
        return self.signature.references or ""

    @property
    def label(self) -> str:
        """What tells a run's evaluations apart: decoding, and what is not the best checkpoint."""
        return self.folder.name if runs.run_of_evaluation(self.folder) else self.decoding

    @property
    def seed(self) -> int | None:
        """The seed of the training, where it is known."""
        return None if self.config is None else self.config.get("seed")


@dataclass(frozen=True)
class System:
    """What a row of a comparison stands for: one result, or several seeds of one configuration."""

    name: str
    results: tuple[Result, ...]

    @property
    def several(self) -> bool:
        """Whether it is more than one seed."""
        return len(self.results) > 1


# Reading --------------------------------------------------------------------------------------


def find_result(path: Path, *, split: str | None = None, decoding: str | None = None) -> Path:
    """The evaluation folder that is meant by a path.

    Args:
        path: a run folder or bundled model, whose newest evaluation is meant, those of ensembles
            and of other checkpoints than the best one (named with @) aside; an evaluation folder; a
            scores.json.
        split: consider only a run's evaluations of this split.
        decoding: consider only a run's evaluations with this decoding label, such as beam3-lp0.7.

    Raises:
        FileNotFoundError: no such path, or no such evaluation in the run.
        ValueError: the folder of a sweep, or a file of another name.
    """
    where = _evaluated(path)
    return runs.find_evaluation(where, split=split, decoding=decoding, name=path)


def _evaluated(path: Path) -> Path:
    """Of the name of a bundled model where its evaluations are, unless the path holds some."""
    folder = bundle.find(path)
    if folder is None or path.is_file() or runs.is_evaluation(path) or runs.evaluations(path):
        return path
    results = bundle.results(folder)
    if not results.exists():
        raise FileNotFoundError(
            f"{path}: this bundled model was not evaluated here; do it with: captioner evaluate "
            f"{shlex.quote(str(path))}"
        )
    return results


def read_result(path: Path, *, split: str | None = None, decoding: str | None = None) -> Result:
    """Read an evaluation; nothing in it can run code.

    Raises:
        FileNotFoundError: see `find_result`, or the evaluation has no statistics.
        ValueError: a file is damaged, or of an older version.
    """
    folder = find_result(path, split=split, decoding=decoding)
    again = "run captioner evaluate again"
    content = _read_scores(folder / SCORES, again)
    if not (folder / STATISTICS).is_file():
        raise FileNotFoundError(f"{folder}: holds no {STATISTICS}, which intervals need; {again}")
    try:
        statistics = Statistics.load(folder / STATISTICS)
        found = statistics.scores()
    except _DAMAGES:
        raise ValueError(f"{folder / STATISTICS}: damaged; {again}") from None
    if len(set(statistics.images)) < len(statistics.images):
        raise ValueError(f"{folder / STATISTICS}: has an image twice; {again}")
    for name, value in found.items():
        if name in content["scores"] and not abs(content["scores"][name] - value) < 0.01:
            raise ValueError(
                f"{folder}: {STATISTICS} gives {name} {float(value):.2f}, {SCORES} "
                f"{content['scores'][name]:.2f}; {again}"
            )
    run, own = _read_config(runs.run_of_evaluation(folder)), _read_config(folder)
    return Result(folder, **content, statistics=statistics, config=run, evaluated=own)


def _read_scores(file: Path, again: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        scores = {str(name): float(value) for name, value in content["scores"].items()}
        missing = {str(name): str(text) for name, text in content.get("missing", {}).items()}
        signature, signatures = from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file}: damaged, or of an older version; {again}") from None
    return {
        "scores": scores,
        "signatures": signatures,
        "signature": signature,
        "missing": missing,
    }


def _read_config(folder: Path | None) -> dict[str, Any] | None:
    import yaml

    file = folder / CONFIG if folder else None
    if file is None or not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{file}: is no YAML; restore it, or copy the evaluation out") from None
    return content if isinstance(content, dict) else None


# Systems --------------------------------------------------------------------------------------


def runs_among(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part what a glob such as runs/sweep/* finds into runs and what cannot be compared.

    Skipped are files other than scores.json, and jobs of a sweep that hold no evaluation: they
    failed, or were not evaluated. Elsewhere a run without an evaluation is kept, to be refused.

    Args:
        arguments: as for `read_systems`.

    Returns:
        the arguments to compare, and for each kind of what was skipped a line that counts it.

    Raises:
        ValueError: nothing is left.
    """
    files = [one for one in arguments if Path(one).is_file() and Path(one).name != SCORES]
    jobs = [one for one in arguments if _is_job(Path(one)) and not runs.evaluations(Path(one))]
    kept = [one for one in arguments if one not in {*files, *jobs}]
    named = {"no run": files, "a job of the sweep without an evaluation": jobs}
    said = [
        f"skipped {len(some)} ({what}): {', '.join(Path(one).name for one in some)}"
        for what, some in named.items()
        if some
    ]
    if not kept:
        again = f"; make one with: captioner evaluate {shlex.quote(jobs[0])}" if jobs else ""
        raise ValueError(f"there is nothing to compare: {'; '.join(said)}{again}")
    return kept, said


def _is_job(path: Path) -> bool:
    return path.is_dir() and runs.is_sweep(path.parent) and not runs.is_evaluation(path)


def read_systems(
    arguments: Sequence[str],
    *,
    split: str | None = None,
    decoding: str | None = None,
    group: bool = True,
) -> list[System]:
    """Read what is to be compared, the first being the baseline.

    Args:
        arguments: paths for `find_result`; paths joined by commas are seeds of one system.
        split: see `find_result`.
        decoding: see `find_result`.
        group: put results together whose configurations differ only in the seed, unless commas
            already say what belongs together.

    Raises:
        FileNotFoundError, ValueError: see `read_result`; a result given twice; one configuration
            with the same seed twice.
    """
    named = [[one] if Path(one).exists() else one.split(",") for one in arguments]
    for one, paths in zip(arguments, named):
        if not all(paths):
            raise ValueError(f"{one!r} has a comma with no path beside it; write A,B")
    members = [
        [read_result(Path(path), split=split, decoding=decoding) for path in paths]
        for paths in named
    ]
    _refuse_twice([result for results in members for result in results])
    if group and all(len(results) == 1 for results in members):
        members = _by_configuration([results[0] for results in members])
    return [System(name, tuple(one)) for name, one in zip(_names(members), members)]


def signature_differences(first: Result, other: Result) -> dict[str, tuple[str, str]]:
    """In what the signatures of two results differ, over the metrics that both have.

    References differ only where both know theirs, and data not where they are the same references
    of the same images, or where an older evaluation did not name the caption file.
    """
    found = first.signature.differences(other.signature)
    for metric in first.signatures.keys() & other.signatures.keys():
        found |= first.signatures[metric].differences(other.signatures[metric])
    if not (first.references and other.references):
        found.pop(REFERENCES, None)
        older, newer = sorted(found.get("data", ("", "")), key=len)
        if older and newer.startswith(f"{older}-"):
            del found["data"]
    elif REFERENCES not in found:
        found.pop("data", None)
    return found


def configuration_differences(results: Sequence[Result]) -> list[str]:
    """The settings, besides the seed, in which the runs of results differ."""
    flat = [_settings(one.config) for one in results if one.config is not None]
    keys = sorted({key for one in flat for key in one})
    values = {key: {json.dumps(one.get(key), default=str) for one in flat} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """All that does not belong to the seed; a run may start from that of its own seed."""
    kept = {key: value for key, value in config.items() if key not in _SEED_KEYS}
    start, seed = kept.get("resume_weights"), config.get("seed")
    if isinstance(start, str):
        kept["resume_weights"] = re.sub(rf"seed{seed}(?!\d)", "seed", start)
    return _flat(kept)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """Seeds of one configuration, decoded alike, together; the order is that of the first ones."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        known = result.config is not None and result.seed is not None
        configuration = json.dumps(_settings(result.config or {}), sort_keys=True, default=str)
        key = f"{configuration} {result.label}" if known else str(result.folder.resolve())
        groups.setdefault(key, []).append(result)
    for members in groups.values():
        seeds = [one.seed for one in members]
        if len(set(seeds)) < len(seeds):
            runs = ", ".join(str(one.run) for one in members)
            raise ValueError(
                f"{runs}: one configuration with a seed twice (seeds "
                f"{', '.join(map(str, seeds))}); leave one out, or give --no-group"
            )
    return list(groups.values())


def _refuse_twice(results: Sequence[Result]) -> None:
    seen: set[Path] = set()
    for result in results:
        folder = result.folder.resolve()
        if folder in seen:
            raise ValueError(f"{result.folder}: given twice; give each evaluation once")
        seen.add(folder)


def _names(members: Sequence[Sequence[Result]]) -> list[str]:
    """The shortest names that tell the systems apart."""
    names: list[str] = []
    for depth in range(4):
        names = [_name(results, depth) for results in members]
        if len(set(names)) == len(names):
            break
    return names


def _name(results: Sequence[Result], depth: int) -> str:
    run, folder = results[0].run, results[0].folder
    if len(results) > 1:
        columns = zip(*(one.run.name for one in results))
        same = takewhile(lambda letters: len(set(letters)) == 1, columns)
        common = "".join(letters[0] for letters in same)
        stem = re.sub(r"[-_.,= ]+(s|seed)?[-_.,= ]*$", "", common) or run.name
    else:
        stem = run.name
    parts = [stem, results[0].label, folder.parent.name]
    if results[0].label != results[0].decoding:  # an ensemble, or not the best checkpoint
        depth = max(depth, 1)
    name = " ".join(parts[: depth + 1]) if depth < 3 else str(folder)
    return f"{name} ({len(results)} seeds)" if len(results) > 1 else name
