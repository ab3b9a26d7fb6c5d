"""Train a model: a Hydra application, a sweep of several, or a run that is resumed."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.process import is_first, this_program
from captioner.runs import JOBS, LAST, SWEEP
from captioner.verbs.failures import TRACEBACK, explain
from captioner.verbs.terminal import fail, print_table, short

if TYPE_CHECKING:
    from captioner.overrides import Override
    from captioner.training.train import TrainedRun

LONGEST = 120
"""Bytes of a job's name, after which further keys are left out of it; file systems allow 255."""


def run(argv: Sequence[str]) -> int:
    """A Hydra application: its flags and overrides, see ``captioner train --help``."""
    from captioner import config, parts

    plugins = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    plugins.add_argument("--plugin", action="append", default=[])
    own, rest = plugins.parse_known_args(argv)
    for module in own.plugin:
        parts.plug_in(module)
    options = _hydra_options(rest)
    if options.shell_completion or options.help or options.hydra_help:
        _under_hydra(rest, _train_job)
        return 0
    again = [*this_program(), "train", *argv]
    flags = [one for one in rest if one not in options.overrides]
    if _resumes(options.overrides) is not None:
        return _resume(options, again)
    where = options.config_dir
    lines = config.checked(options.overrides, several=options.multirun, config_dir=where)
    if options.multirun:
        own_parts = [f"--plugin={module}" for module in own.plugin]
        return _sweep(flags, lines, where, own_parts)
    failures: list[Exception] = []

    def job(composed: Any) -> None:
        try:
            _train_job(composed, again)
        except Exception as error:  # past Hydra, which would say more than one line about it
            failures.append(error)

    _under_hydra([*flags, *lines], job)
    if failures:
        raise failures[0]
    return 0


def _hydra_options(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides, in whatever order they stand."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = "captioner train"
    return parser.parse_intermixed_args(argv)


def _under_hydra(argv: Sequence[str], job: Callable[[Any], Any]) -> None:
    """Run Hydra's application, which reads its command line from the process."""
    import hydra

    from captioner import config

    sys.argv = ["captioner train", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises; the command line says it in one line
    hydra.main(str(config.conf_folder()), "config", version_base="1.3")(job)()


# One run ----------------------------------------------------------------------------------------


def _train_job(composed: Any, again: Sequence[str] = ()) -> TrainedRun:
    """Train with a configuration that Hydra has composed; `again` as of _train."""
    from hydra.core.hydra_config import HydraConfig

    from captioner import parts
    from captioner.config import plain
    from captioner.training.train import inherit

    config = plain(composed)
    if config["resume"] is not None:
        raise ValueError("resume is given on the command line alone, as resume=RUN")
    parts.plug_in_all(config)
    job = HydraConfig.get()
    folder = _run_folder(job, config["run_dir"])
    return _train(inherit(config, list(job.overrides.task)), folder, again)


def _run_folder(hydra: Any, run_dir: Any) -> Path:
    """The folder of this run: run_dir, or Hydra's for a job of a sweep and for hydra.run.dir."""
    output = Path(hydra.runtime.output_dir)
    if output != Path.cwd():
        return output
    if not isinstance(run_dir, str) or not run_dir.strip():
        raise ValueError(f"run_dir={run_dir!r} is not accepted; name a folder, or leave it out")
    return Path(run_dir)


def _train(
    config: dict[str, Any], folder: Path, again: Sequence[str], resume: Path | None = None
) -> TrainedRun:
    """Train, and print what came of it; `again` is what starts another process of the training."""
    from captioner.training import ranks
    from captioner.training.train import train

    with ranks.muted():
        run = train(config, folder, resume=resume, command=again)
        _print_run(run)
    return run


def _print_run(run: TrainedRun) -> None:
    if run.scores:
        print_table(
            f"dev scores of the best checkpoint, epoch {run.epoch}",
            {name: f"{value:.2f}" for name, value in run.scores.items()},
        )
    else:
        print(
            "no dev scores: no validation took place (trainer.check_val_every_n_epoch, "
            "trainer.limit_val_batches); the last checkpoint is taken for the best"
        )
    print(
        f"ended            {run.ending}\n"
        f"run folder       {short(run.folder)}\n"
        f"best checkpoint  {short(run.best)}"
    )


# A run that is resumed --------------------------------------------------------------------------


def _resumes(overrides: Sequence[str]) -> str | None:
    """The run that is to be resumed, if one is."""
    from captioner.overrides import parse

    given = [line for line in overrides if line.lstrip("+").startswith("resume=")]
    value = parse(given)[-1].value() if given else None
    return None if value in (None, "") else str(value)


def _resume(options: argparse.Namespace, again: Sequence[str]) -> int:
    """Resume a run in its own folder; nothing is composed but what the overrides choose."""
    from captioner import parts
    from captioner.checkpoints import bundle, checkpoint
    from captioner.overrides import parse
    from captioner.training.duration import require_epochs
    from captioner.training.resuming import resumed

    named = str(_resumes(options.overrides))
    if options.multirun:
        raise ValueError(f"resume={named} continues one run; leave --multirun out")
    for change in parse(options.overrides):
        if not change.is_sweep_override() and parts.is_own(change.value()):
            parts.plug_in(change.value())
    if bundle.find(named) is not None and not Path(named).exists():
        raise ValueError(
            f"resume={named}: a bundled model has no optimizer to continue with; "
            f"resume_weights={named} starts another training from its weights"
        )
    last = checkpoint.find(named, name=LAST)
    found, folder = checkpoint.read(last), checkpoint.run_folder(last)
    if "optimizer_states" not in found.lightning:
        raise ValueError(
            f"resume={named}: {last.name} holds weights alone; resume={folder} continues from "
            f"{LAST}, resume_weights={named} starts another training from it"
        )
    where = options.config_dir
    config = resumed(found.config, options.overrides, run=named, folder=folder, config_dir=where)
    if options.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
        return 0
    require_epochs(found.lightning, config["trainer"]["max_epochs"])  # before all that takes long
    _train(config, folder, again, last)
    return 0


# Several runs -----------------------------------------------------------------------------------


class JobFailed(RuntimeError):
    """A job of a sweep could not be done; the others are."""


def _sweep(
    flags: Sequence[str], lines: Sequence[str], config_dir: str | None, own_parts: Sequence[str]
) -> int:
    """Train every combination; print what came of each, and return 1 where one failed."""
    if not is_first():
        raise ValueError(
            "a sweep starts the processes of its trainings itself: captioner train -m ... "
            "trainer.devices=2, without torchrun"
        )
    kept = [one for one in flags if one not in ("-m", "--multirun")]
    again = [*this_program(), "train", *own_parts, *kept]
    more, folder = sweep_overrides(lines, config_dir)
    jobs, new = folder / JOBS, not folder.exists()
    before = jobs.stat().st_size if jobs.is_file() else 0
    try:
        given = [*flags, *for_each_job(lines, config_dir), *more]
        _under_hydra(given, lambda composed: _sweep_job(composed, again))
    except Exception:
        if not _said(jobs, before):  # not one job has run
            raise
    finally:
        if new and {path.name for path in folder.glob("*")} == {SWEEP}:
            shutil.rmtree(folder)
        found = _said(jobs, before)
        if found:
            _print_jobs(found, folder)
    return 1 if any("error" in one for one in found) else 0


def sweep_overrides(
    lines: Sequence[str], config_dir: str | Path | None = None
) -> tuple[list[str], Path]:
    """What a sweep needs besides its overrides, and the folder of its runs.

    Args:
        lines: overrides, as ``config.checked`` gives them.
        config_dir: a folder with options of one's own.

    Returns:
        overrides that name its folder and its jobs, and tell a sweeper that searches that higher
        scores are better; and the folder.

    Raises:
        ValueError: an interval, for a sweeper that takes lists alone.
    """
    from captioner.config import compose_base, hydra_loader
    from captioner.overrides import parse, quote

    hydra = compose_base(lines, config_dir=config_dir).hydra
    with hydra_loader() as loader:
        changes = parse(lines, several=True, loader=loader)
    named = {change.key_or_group: change for change in changes}
    searches = "direction" in hydra.sweeper
    for change in changes:
        if change.is_sweep_override() and not change.is_discrete_sweep() and not searches:
            raise ValueError(
                f"{change.input_line}: an interval has no list of values to try; write "
                f"{change.key_or_group}=a,b,c, or add hydra/sweeper=optuna, which searches it"
            )
    folder = str(hydra.sweep.dir)
    if "run_dir" in named and "hydra.sweep.dir" not in named:
        folder = str(named["run_dir"].value())
    more = [f"hydra.sweep.dir={quote(folder)}", _names_of_jobs(list(named.values()))]
    own = "null" if config_dir is None else quote(str(config_dir))
    more.append(
        "+hydra.callbacks.refusals={_target_:captioner.training.sweeps.Refusals,config_dir:"
        + own
        + "}"
    )
    if searches and "hydra.sweeper.direction" not in named:
        more.append("hydra.sweeper.direction=maximize")
    return more, Path(folder)


def for_each_job(lines: Sequence[str], config_dir: str | Path | None = None) -> list[str]:
    """Overrides so that Hydra holds no value against the default of a group that is swept.

    Before it composes the jobs it composes the defaults, with all that is no sweep: there a value
    of another option becomes a sweep of one.
    """
    from captioner.config import compose_base, hydra_loader
    from captioner.config import has as is_option
    from captioner.overrides import parse

    with hydra_loader() as loader:
        changes = parse(lines, several=True, loader=loader)
    fixed = [str(one.input_line) for one in changes if not one.is_sweep_override()]
    defaults = compose_base(fixed, config_dir=config_dir)
    result = []
    for line, change in zip(lines, changes):
        key, sets = change.key_or_group, not (change.is_add() or change.is_delete())
        absent = "." in key and not key.startswith("hydra") and not is_option(defaults, key)
        if sets and absent and not change.is_sweep_override():
            line = f"{key}=choice({change.get_value_element_as_str()})"
        result.append(line)
    return result


def _names_of_jobs(changes: Sequence[Override]) -> str:
    """Jobs are named by what differs between them, if that is no path and the name not too long."""
    left_out, length = [], 0
    for change in changes:
        line = str(change.input_line)
        if change.is_sweep_override() and "/" not in line:
            key = change.get_key_element()
            values = change.sweep_string_iterator() if change.is_discrete_sweep() else ["9" * 20]
            longest = max((len(f"{key}={value},".encode()) for value in values), default=0)
            length += longest
            if length <= LONGEST:
                continue
            length -= longest
        if not change.key_or_group.startswith("hydra"):
            left_out.append(change.key_or_group)
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(left_out)}]"


def _sweep_job(composed: Any, again: Sequence[str]) -> float:
    """One job of a sweep; gives sweepers the monitored score, of which more is better."""
    from hydra.core.hydra_config import HydraConfig

    from captioner.training.sweeps import REFUSED

    job = HydraConfig.get()
    path, folder = Path(job.sweep.dir) / JOBS, Path(job.runtime.output_dir)
    row: dict[str, Any] = {"job": job.job.num, "folder": folder.name}
    try:
        if composed.get(REFUSED):
            raise ValueError(composed[REFUSED])
        paths = [one for one in job.overrides.hydra if one.startswith("hydra.searchpath")]
        run = _train_job(composed, [*again, *job.overrides.task, *paths])
    except Exception as error:
        with suppress(OSError):
            folder.rmdir()  # Hydra's, if there is nothing in it
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        reason = " ".join(explain(error).split())
        _append(path, {**row, "error": reason})
        fail(f"{folder.name}: {reason}")
        if job.sweeper._target_.endswith(
            "BasicSweeper"
        ):  # it looks at no score, and would say more
            return math.nan
        raise JobFailed(reason) from None
    _append(path, {**row, "monitor": run.monitor, "score": run.score, "scores": run.scores})
    return run.score


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add a line at once, for jobs may run side by side."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _said(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines of a sweep's jobs from a place in their file, in the order of the jobs."""
    if not path.is_file():
        return []
    rows = path.read_bytes()[start:].decode("utf-8").splitlines()
    return sorted((json.loads(row) for row in rows), key=lambda row: int(row["job"]))


def _print_jobs(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    failed = sum("error" in row for row in rows)
    print(f"\n{len(rows)} jobs, {failed} failed, in {short(folder)}")
    width = max(len(row["folder"]) for row in rows)
    for row in rows:
        result = f"failed: {row['error']}" if "error" in row else ""
        if not result:
            result = f"{row['monitor']} {row['score']:.2f}"
        print(f"  {row['folder']:<{width}}  {result}")
