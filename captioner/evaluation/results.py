"""Results on disk: reads what ``captioner evaluate`` wrote and groups it by configuration."""

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
from captioner.metrics.signature import FORMAT, Signature, from_json
from captioner.metrics.statistics import Statistics
from captioner.old_names import modernized
from captioner.plain_data import read_json, read_yaml, require_config, require_format
from captioner.runs import CONFIG, SCORES, STATISTICS

MAY_DIFFER = ("decoding", "captioner", "training")
"""Entries of a signature in which two systems may differ; a warning says so."""
MAY_DIFFER_INSIDE = ("captioner",)
"""Entries in which the seeds of one system may differ."""

REFERENCES = "references"
"""The entry of a signature with a hash of the references; older evaluations have none."""

_DAMAGES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, zlib.error)
"""Exceptions that zipfile and numpy raise for a damaged archive, in addition to ValueError."""

_SEED_KEYS = ("seed", "run_dir", "resume")  # differ between two seeds of one configuration


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        folder: the evaluation folder.
        scores: metric to score.
        signatures: metric to signature.
        signature: the fields that all signatures have in common.
        missing: metric to the reason why it was not computed.
        statistics: rows of the images.
        config: the run's config.yaml; None if there is none.
        evaluated: the evaluation's config.yaml (data, split and decoding); None if there is none.
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
        """The run folder; the evaluation folder if it is not in a run."""
        return runs.evaluation_run(self.folder) or self.folder

    @property
    def decoding(self) -> str:
        """The label of the decoding options; empty if it is not known."""
        return self.signature.decoding or ""

    @property
    def references(self) -> str:
        """A hash of the references; empty for an older evaluation."""
        return self.signature.references or ""

    @property
    def label(self) -> str:
        """Identifies an evaluation in its run: the decoding, and any checkpoint except the best."""
        return self.folder.name if runs.evaluation_run(self.folder) else self.decoding

    @property
    def seed(self) -> int | None:
        """The seed of the training, if it is known."""
        seed = None if self.config is None else self.config.get("seed")
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class System:
    """A row of a comparison: one result, or several seeds of one configuration."""

    name: str
    results: tuple[Result, ...]

    @property
    def several(self) -> bool:
        """Whether it has more than one seed."""
        return len(self.results) > 1


# Reading --------------------------------------------------------------------------------------


def find_result(path: Path, *, split: str | None = None, decoding: str | None = None) -> Path:
    """The evaluation folder that a path refers to.

    Args:
        path: an evaluation folder or its scores.json; or a run folder or bundled model, of which
            the newest evaluation is used, except those of ensembles and of checkpoints other
            than the best one (their names have an @).
        split: of a run, consider only evaluations of this split.
        decoding: of a run, consider only evaluations with this decoding label, such as beam3-lp0.7.

    Raises:
        FileNotFoundError: the path does not exist, or the run has no such evaluation.
        ValueError: it is the folder of a sweep, or a file with another name.
    """
    place = _place_of_evaluations(path)
    return runs.find_evaluation(place, split=split, decoding=decoding, name=path)


def _place_of_evaluations(path: Path) -> Path:
    """The path itself, or for the name of a bundled model the folder of its evaluations."""
    folder = bundle.find(path)
    if folder is None or path.is_file() or runs.is_evaluation(path) or runs.evaluations(path):
        return path
    results = bundle.results(folder)
    if not results.exists():
        raise FileNotFoundError(
            f"{path}: this bundled model was not evaluated here; evaluate it with: "
            f"captioner evaluate {shlex.quote(str(path))}"
        )
    return results


def read_result(path: Path, *, split: str | None = None, decoding: str | None = None) -> Result:
    """Read an evaluation, without executing code from its files.

    Raises:
        FileNotFoundError: see `find_result`, or the evaluation has no statistics.
        ValueError: a file is damaged, or of an older version.
    """
    folder = find_result(path, split=split, decoding=decoding)
    advice = "run captioner evaluate again"
    content = _read_scores(folder / SCORES, advice)
    if not (folder / STATISTICS).exists():
        raise FileNotFoundError(f"{folder}: has no {STATISTICS}, which intervals need; {advice}")
    try:
        statistics = Statistics.load(folder / STATISTICS)
        recomputed = statistics.scores()
    except _DAMAGES:
        raise ValueError(f"{folder / STATISTICS}: damaged; {advice}") from None
    if len(set(statistics.images)) < len(statistics.images):
        raise ValueError(f"{folder / STATISTICS}: has an image twice; {advice}")
    for name, value in recomputed.items():
        if name in content["scores"] and not abs(content["scores"][name] - value) < 0.01:
            raise ValueError(
                f"{folder}: {STATISTICS} gives {name} {float(value):.2f}, {SCORES} "
                f"{content['scores'][name]:.2f}; {advice}"
            )
    run, own = _read_config(runs.evaluation_run(folder)), _read_config(folder)
    return Result(folder, **content, statistics=statistics, config=run, evaluated=own)


def _read_scores(file: Path, advice: str) -> dict[str, Any]:
    fault = f"damaged, or of an older version; {advice}"
    content = read_json(file, fault=fault)
    try:
        found, written_by = content.get("format", FORMAT), content.get("version")
    except AttributeError:
        raise ValueError(f"{file}: {fault}") from None
    require_format(file, "scores", found=found, written_by=written_by, reads=FORMAT)
    try:
        scores = {str(name): float(value) for name, value in content["scores"].items()}
        missing = {str(name): str(text) for name, text in content.get("missing", {}).items()}
        signature, signatures = from_json(content)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise ValueError(f"{file}: {fault}") from None
    return {
        "scores": scores,
        "signatures": signatures,
        "signature": signature,
        "missing": missing,
    }


def _read_config(folder: Path | None) -> dict[str, Any] | None:
    file = folder / CONFIG if folder else None
    if file is None or not file.exists():
        return None
    fault = "not valid YAML; restore it, or copy the evaluation to another folder"
    content = read_yaml(file, fault=fault)
    return modernized(require_config(content, file)) if isinstance(content, dict) else None


# Systems --------------------------------------------------------------------------------------


def runs_among(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate runs from other paths, because a glob such as runs/sweep/* matches both.

    These are skipped: files of a sweep, files in a folder of which every entry is given, and jobs
    of a sweep without an evaluation, which failed or were not evaluated. Any other file, or run
    without an evaluation, is kept, and is an error when it is read.

    Args:
        arguments: as for `read_systems`.

    Returns:
        the arguments to compare, and for each kind of skipped path a line that lists them.

    Raises:
        ValueError: paths are skipped, and fewer than two are left to compare.
    """
    files = [path for path in arguments if _is_from_glob(Path(path), arguments)]
    jobs = [path for path in arguments if _is_job(Path(path)) and not runs.evaluations(Path(path))]
    remaining = [path for path in arguments if path not in {*files, *jobs}]
    skipped = {"no run": files, "a job of the sweep without an evaluation": jobs}
    notes = [
        f"skipped {len(paths)} ({reason}): {', '.join(Path(path).name for path in paths)}"
        for reason, paths in skipped.items()
        if paths
    ]
    if notes and len(remaining) < 2:
        left = f"only {remaining[0]} is left" if remaining else "nothing is left"
        hint = f"; make one with: captioner evaluate {shlex.quote(jobs[0])}" if jobs else ""
        raise ValueError(f"{left} to compare: {'; '.join(notes)}{hint}")
    return remaining, notes


def _is_from_glob(path: Path, arguments: Sequence[str]) -> bool:
    """Whether a file was matched by a glob: in a sweep, or given with its whole folder."""
    if not path.is_file() or path.name == SCORES:
        return False
    beside = {entry for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    return runs.is_sweep(path.parent) or (len(beside) > 1 and beside <= {*map(Path, arguments)})


def _is_job(path: Path) -> bool:
    return path.is_dir() and runs.is_sweep(path.parent) and not runs.is_evaluation(path)


def read_systems(
    arguments: Sequence[str],
    *,
    split: str | None = None,
    decoding: str | None = None,
    group: bool = True,
) -> list[System]:
    """Read the systems to compare; the first is the baseline.

    Args:
        arguments: paths for `find_result`; paths joined by commas are seeds of one system.
        split: see `find_result`.
        decoding: see `find_result`.
        group: group results whose configurations differ only in the seed, unless commas already
            group them.

    Raises:
        FileNotFoundError, ValueError: see `read_result`; or a result is given twice, or one
            configuration has the same seed twice.
    """
    separated = [[word] if Path(word).exists() else word.split(",") for word in arguments]
    for word, paths in zip(arguments, separated):
        if not all(paths):
            raise ValueError(f"{word!r} has a comma without a path next to it; write A,B")
    groups = [
        [read_result(Path(path), split=split, decoding=decoding) for path in paths]
        for paths in separated
    ]
    _refuse_duplicates([result for results in groups for result in results])
    if group and all(len(results) == 1 for results in groups):
        groups = _by_configuration([results[0] for results in groups])
    return [System(name, tuple(results)) for name, results in zip(_names(groups), groups)]


def signature_differences(first: Result, other: Result) -> dict[str, tuple[str, str]]:
    """The entries in which the signatures of two results differ, over the metrics that both have.

    References are compared only if both signatures have their hash. Data do not differ if the
    references are the same, or if only an older evaluation does not name the caption file.
    """
    entries = first.signature.differences(other.signature)
    for metric in first.signatures.keys() & other.signatures.keys():
        entries |= first.signatures[metric].differences(other.signatures[metric])
    if not (first.references and other.references):
        entries.pop(REFERENCES, None)
        older, newer = sorted(entries.get("data", ("", "")), key=len)
        if older and newer.startswith(f"{older}-"):
            del entries["data"]
    elif REFERENCES not in entries:
        entries.pop("data", None)
    return entries


def configuration_differences(results: Sequence[Result]) -> list[str]:
    """The options, except the seed, in which the runs of results differ."""
    runs = [_settings(result.config) for result in results if result.config is not None]
    keys = sorted({key for settings in runs for key in settings})
    values = {key: {json.dumps(options.get(key), default=str) for options in runs} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """All options except the seed; a run may start from the weights of a run with its own seed."""
    options = {key: value for key, value in config.items() if key not in _SEED_KEYS}
    start, seed = options.get("resume_weights"), config.get("seed")
    if isinstance(start, str):
        options["resume_weights"] = re.sub(rf"seed{re.escape(str(seed))}(?!\d)", "seed", start)
    return _flat(options)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """Results grouped by configuration, decoding and data, in the order of their first ones."""
    groups: list[list[Result]] = []
    for result in results:
        alike = (members for members in groups if _is_other_seed(members[0], result))
        members = next(alike, [])
        if not members:
            groups.append(members)
        members.append(result)
    for members in groups:
        seeds = [result.seed for result in members]
        if len(set(seeds)) < len(seeds):
            folders = ", ".join(str(result.folder) for result in members)
            raise ValueError(
                f"{folders}: evaluations of one configuration with a seed twice (seeds "
                f"{', '.join(map(str, seeds))}); leave one out, or give --no-group"
            )
    return groups


def _is_other_seed(first: Result, other: Result) -> bool:
    """Whether two results differ, as far as is known, only in the seed of the training."""
    if first.seed is None or other.seed is None or first.label != other.label:
        return False
    if {"data", "split", REFERENCES} & signature_differences(first, other).keys():
        return False
    return _settings(first.config or {}) == _settings(other.config or {})


def _refuse_duplicates(results: Sequence[Result]) -> None:
    folders: set[Path] = set()
    for result in results:
        folder = result.folder.resolve()
        if folder in folders:
            raise ValueError(f"{result.folder}: given twice; give each evaluation once")
        folders.add(folder)


def _names(members: Sequence[Sequence[Result]]) -> list[str]:
    """The shortest names that are different for all systems."""
    names: list[str] = []
    for depth in range(4):
        names = [_name(results, depth) for results in members]
        if len(set(names)) == len(names):
            break
    return names


def _name(results: Sequence[Result], depth: int) -> str:
    run, folder = results[0].run, results[0].folder
    if len(results) > 1:
        columns = zip(*(result.run.name for result in results))
        equal = takewhile(lambda letters: len(set(letters)) == 1, columns)
        common = "".join(letters[0] for letters in equal)
        stem = re.sub(r"[-_.,= ]+(s|seed)?[-_.,= ]*$", "", common) or run.name
    else:
        stem = run.name
    parts = [stem, results[0].label, folder.parent.name]
    if results[0].label != results[0].decoding:  # an ensemble, or not the best checkpoint
        depth = max(depth, 1)
    name = " ".join(parts[: depth + 1]) if depth < 3 else str(folder)
    return f"{name} ({len(results)} seeds)" if len(results) > 1 else name
