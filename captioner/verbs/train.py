"""Train a model: a Hydra application, a sweep of several, or a run that is resumed."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from captioner.files import write_whole
from captioner.process import interruption_of, is_first, this_program
from captioner.runs import (
    JOBS,
    LAST,
    SWEEP,
    find_checkpoint,
    has_ended,
    is_unstarted,
    require_closed,
)
from captioner.verbs.failures import TRACEBACK, explain
from captioner.verbs.terminal import Parser, fail, print_table, short, usage_error

if TYPE_CHECKING:
    from captioner.checkpoints.checkpoint import Checkpoint
    from captioner.overrides import Override
    from captioner.training.train import TrainedRun


def run(argv: Sequence[str]) -> int:
    """A Hydra application: its flags and overrides, see ``captioner train --help``."""
    try:
        return _run(argv)
    except BaseException as error:
        reason = interruption_of(error)
        if reason is None or str(reason) not in _REASONS or not is_first():
            raise
        # The training says more itself, from the moment on at which it has its folder.
        raise KeyboardInterrupt(_before_the_start(str(reason) or "interrupted", argv)) from None


_REASONS = ("", "terminated (SIGTERM)")
"""The texts of an interruption: Ctrl-C, and that of ``captioner.cli``."""


def _before_the_start(reason: str, argv: Sequence[str]) -> str:
    """What can be done after an interruption before the training has started."""
    named = [word.partition("=")[2] for word in argv if re.match(r"\+*resume=.", word)]
    if named:
        path = Path(os.path.expanduser(named[-1]))
        if not path.is_file() and find_checkpoint(path, LAST) is None:
            return reason
        command = f"captioner train {shlex.quote(f'resume={named[-1]}')}"
        return f"{reason}; `{command}` resumes from the last checkpoint"
    if {"-m", "--multirun"} & {*argv}:
        return f"{reason} before the first job; the same command starts the sweep again"
    return f"{reason} before the first step: there is nothing to resume, no run folder is left"


def _run(argv: Sequence[str]) -> int:
    from captioner import config, parts

    plugins = Parser(prog="captioner train", add_help=False, allow_abbrev=False)
    plugins.add_argument("--plugin", action="append", default=[])
    own, rest = plugins.parse_known_args(argv)
    for module in own.plugin:
        parts.plug_in(module)
    options = _hydra_options(rest)
    if options.shell_completion or options.help or options.hydra_help:
        _under_hydra(rest, lambda composed: _train_job(composed, (), ()))
        return 0
    command = [*this_program(), "train", *argv]
    flags = [flag for flag in rest if flag not in options.overrides]
    if any(line.lstrip("+").startswith("resume=") for line in options.overrides):
        status = _resume(options, command)
        if status is not None:
            return status
    config_dir = options.config_dir
    changes = config.checked(options.overrides, several=options.multirun, config_dir=config_dir)
    if options.multirun:
        own_parts = [f"--plugin={module}" for module in own.plugin]
        return _sweep(flags, changes, config_dir, own_parts)
    failures: list[Exception] = []

    def job(composed: Any) -> None:
        try:
            _train_job(composed, changes, command)
        except Exception as error:  # not through Hydra, which would print more than one line
            failures.append(error)

    _under_hydra([*flags, *_lines(changes)], job)
    if failures:
        raise failures[0]
    return 0


def _hydra_options(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides, in any order."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False  # --experiment would be --experimental-rerun
    flags = [flag for action in parser._actions for flag in action.option_strings]
    parser.error = lambda message: _usage_error(message, argv, flags)  # type: ignore[method-assign]
    return parser.parse_intermixed_args(argv)


def _usage_error(message: str, argv: Sequence[str], flags: Sequence[str]) -> NoReturn:
    """End with a usage error; a flag that is the name of an option or group is an override here."""
    from captioner.config import compose_all, groups
    from captioner.config.keys import leaves
    from captioner.overrides import shell_word

    unknown = re.match(r"unrecognized arguments: --([\w.-]+)", message)
    if unknown:
        name, value = unknown[1].replace("-", "_"), _flag_value(f"--{unknown[1]}", argv)
        known = dict.fromkeys([*leaves(compose_all(())), *groups()])
        keys = [key for key in known if name in (key, key.replace(".", "_"))]
        keys = keys or [key for key in known if key.endswith(f".{name}")]
        overrides = " or ".join(shell_word(key, value) for key in keys)
        message = f"--{unknown[1]} is not a flag; write {overrides}" if keys else message
    usage_error("captioner train", message, flags)


def _flag_value(flag: str, argv: Sequence[str]) -> str:
    """The value that follows a flag on the command line; "..." if there is none."""
    for word, after in zip(argv, [*argv[1:], ""]):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and after and "=" not in after and not after.startswith("-"):
            return after
    return "..."


def _under_hydra(argv: Sequence[str], job: Callable[[Any], Any]) -> None:
    """Run Hydra's application, which reads its command line from the process."""
    import hydra

    from captioner import config

    sys.argv = ["captioner train", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and the command line prints one line
    hydra.main(str(config.conf_folder()), "config", version_base="1.3")(job)()


def _lines(changes: Sequence[Override]) -> list[str]:
    """Parsed overrides as Hydra takes them on its command line."""
    return [str(change.input_line) for change in changes]


# One run ----------------------------------------------------------------------------------------


def _train_job(
    composed: Any,
    changes: Sequence[str | Override],
    command: Sequence[str],
    resume_command: Sequence[str] | None = None,
) -> TrainedRun:
    """Train with a configuration that Hydra has composed.

    Args:
        composed: the configuration.
        changes: the overrides with which it was composed.
        command: the command that starts another process of the training.
        resume_command: of a job of a sweep, the same for the case that it is resumed, without
            ``resume=``; None: a folder that has a run is refused.
    """
    from hydra.core.hydra_config import HydraConfig

    from captioner import parts
    from captioner.config import plain
    from captioner.training.train import inherit, read_weights

    config = plain(composed)
    if config["resume"] is not None:
        raise ValueError("resume is given only on the command line, as resume=RUN")
    parts.plug_in_all(config)
    folder = _run_folder(HydraConfig.get(), config["run_dir"])
    weights = read_weights(config)
    config = inherit(config, changes, weights)
    if resume_command is not None:
        done = _continue_job(config, folder, resume_command)
        if done is not None:
            return done
    return _train(config, folder, command, weights=weights)


def _continue_job(
    config: dict[str, Any], folder: Path, command: Sequence[str]
) -> TrainedRun | None:
    """The result of a job that an earlier command has trained, or has begun to; None for others."""
    from captioner.training.resuming import earlier
    from captioner.training.train import resolved, result_of

    last = earlier(resolved(config, lambda line: None), folder)
    if last is None:
        return None
    if has_ended(folder):
        print(f"{folder.name}: has ended already", flush=True)
        return result_of(folder, config, "before")
    config = {**config, **{key: last.config[key] for key in ("run_dir", "seed", "trainer")}}
    return _train(config, folder, [*command, f"resume={folder}"], resume=last)


def _run_folder(hydra: Any, run_dir: Any) -> Path:
    """The folder of this run: run_dir, or Hydra's for a job of a sweep and for hydra.run.dir."""
    output = Path(hydra.runtime.output_dir)
    if output != Path.cwd():
        return output
    if not isinstance(run_dir, str) or not run_dir.strip():
        raise ValueError(f"run_dir={run_dir!r} is not accepted; name a folder, or leave it out")
    return Path(run_dir)


def _train(
    config: dict[str, Any],
    folder: Path,
    command: Sequence[str],
    *,
    resume: Checkpoint | None = None,
    weights: Checkpoint | None = None,
) -> TrainedRun:
    """Train, and print the result; `command` is the command that starts another process."""
    from captioner.training import ranks
    from captioner.training.train import train

    report = partial(print, flush=True)
    run = train(
        config,
        folder,
        resume=resume,
        weights=weights,
        command=command,
        report=report,
        report_error=fail,
    )
    if ranks.first():
        try:
            _print_run(run)
        except KeyboardInterrupt as error:
            reason = str(error) or "interrupted"
            raise KeyboardInterrupt(f"{reason} after the training, in {short(folder)}") from None
    return run


def _print_run(run: TrainedRun) -> None:
    from captioner.verbs.printing import print_rows

    if run.scores:
        print_table(
            f"dev scores of the best checkpoint, epoch {run.epoch}",
            {name: f"{value:.2f}" for name, value in run.scores.items()},
        )
    else:
        print(
            "no dev scores: no validation took place (trainer.check_val_every_n_epoch, "
            "trainer.limit_val_batches); the last checkpoint is used as the best"
        )
    print_rows(
        [
            ("ended", run.ending),
            ("run folder", short(run.folder)),
            ("best checkpoint", short(run.best)),
        ],
        no_wrap=(1,),
    )


# A run that is resumed --------------------------------------------------------------------------


def _resume(options: argparse.Namespace, command: Sequence[str]) -> int | None:
    """Resume a run in its own folder; only groups that the overrides name are composed.

    Returns:
        the exit status; None if ``resume`` names no run (``resume=null``).
    """
    from captioner.config import to_yaml
    from captioner.overrides import parse
    from captioner.training.duration import require_epochs
    from captioner.training.resuming import resumed

    changes = parse(options.overrides)
    named = [change.value() for change in changes if change.key_or_group == "resume"][-1]
    if named is None:
        return None
    if not str(named).strip():
        raise ValueError(
            f"resume={str(named)!r} is not accepted; give the run folder to continue, such as "
            "resume=runs/x, or leave it out"
        )
    if options.multirun:
        raise ValueError(f"resume={named} continues one run; leave --multirun out")
    last, folder = _last_checkpoint(str(named), changes)
    config_dir = options.config_dir
    config = resumed(last.config, changes, run=str(named), folder=folder, config_dir=config_dir)
    if options.cfg:
        print(to_yaml(config), end="")
        return 0
    require_epochs(last.lightning, config["trainer"])  # before anything slow
    _train(config, folder, command, resume=last)
    return 0


def _last_checkpoint(named: str, changes: Sequence[Override]) -> tuple[Checkpoint, Path]:
    """The checkpoint from which a run resumes, and the run folder.

    Args:
        named: the run as the user named it.
        changes: the overrides; modules of the user's own classes that they name are imported.

    Raises:
        ValueError: the run has no optimizer to continue with.
        FileNotFoundError: there is no such run.
    """
    from captioner import parts
    from captioner.checkpoints import bundle, checkpoint
    from captioner.overrides import shell_word

    for change in changes:
        if not change.is_sweep_override() and parts.is_own(change.value()):
            parts.plug_in(change.value())
    if bundle.find(named) is not None and not Path(named).exists():
        raise ValueError(
            f"resume={named}: a bundled model has no optimizer to continue with; "
            f"{shell_word('resume_weights', named)} starts another training from its weights"
        )
    if is_unstarted(Path(named)):
        raise ValueError(
            f"resume={named}: this run ended before its first step, so there is nothing to resume; "
            f"start it again with the command that started it and {shell_word('run_dir', named)}"
        )
    last = checkpoint.read(checkpoint.find(named, name=LAST))
    folder = checkpoint.run_folder(last.path)
    if "optimizer_states" not in last.lightning:
        raise ValueError(
            f"resume={named}: {last.path.name} contains only weights; "
            f"{shell_word('resume', folder)} continues from {LAST}, "
            f"{shell_word('resume_weights', named)} starts another training from it"
        )
    return last, folder


# Several runs -----------------------------------------------------------------------------------


class JobFailed(RuntimeError):
    """A job of a sweep has failed; the others continue."""


def _sweep(
    flags: Sequence[str],
    changes: Sequence[Override],
    config_dir: str | None,
    own_parts: Sequence[str],
) -> int:
    """Train every combination; print the result of each, and return 1 if one failed."""
    from captioner.training.sweeps import count_jobs, for_each_job, sweep_overrides

    if not is_first():
        raise ValueError(
            "a sweep starts the processes of its trainings itself: captioner train -m ... "
            "trainer.devices=2, without torchrun"
        )
    own_flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    command = [*this_program(), "train", *own_parts, *own_flags]
    more, folder = sweep_overrides(changes, config_dir)
    require_closed(folder)
    jobs, new = folder / JOBS, not folder.exists()
    before = jobs.stat().st_size if jobs.is_file() else 0
    lines, interruption = for_each_job(changes, config_dir), None
    count = count_jobs(lines, changes, config_dir)
    try:
        _under_hydra([*flags, *lines, *more], lambda composed: _sweep_job(composed, command))
    except BaseException as error:
        interruption = interruption_of(error)
        has_run = isinstance(error, Exception) and _read_jobs(jobs, before)
        if interruption is None and not has_run:
            raise
    finally:
        if new and {path.name for path in folder.glob("*")} == {SWEEP}:
            shutil.rmtree(folder)
        rows = _read_jobs(jobs, before)
        _drop_repeated(jobs)
        if rows:
            _print_jobs(rows, count, folder)
    if interruption is not None:
        # The text of the interruption also has what a job says about its own folder.
        reason = _REASONS[1] if str(interruption).startswith(_REASONS[1]) else "interrupted"
        named = any(change.key_or_group in ("run_dir", "hydra.sweep.dir") for change in changes)
        remains = "" if count is None else _how_to_continue(folder, named)
        raise KeyboardInterrupt(f"{reason}: {_of(len(rows), count)} have ended{remains}")
    return 1 if any("error" in row for row in rows) else 0


def _how_to_continue(folder: Path, named: bool) -> str:
    """How to continue an interrupted sweep that is no search.

    Args:
        folder: of the sweep; it does not exist if no job has left anything.
        named: whether the command names it.
    """
    from captioner.overrides import shell_word

    if not folder.exists():
        return "; the same command starts the sweep again"
    more = "" if named else f" with {shell_word('run_dir', folder)}"
    return f"; the same command{more} continues"


def _of(number: int, count: int | None) -> str:
    """``2 of 4 jobs``, or ``4 jobs`` if these are all, or it is not known how many there are."""
    return f"{number} jobs" if count in (None, number) else f"{number} of {count} jobs"


def _sweep_job(composed: Any, command: Sequence[str]) -> float:
    """One job of a sweep; returns the monitored score to the sweeper, higher is better."""
    from hydra.core.hydra_config import HydraConfig

    from captioner.training.sweeps import REFUSED

    job = HydraConfig.get()
    path, folder = Path(job.sweep.dir) / JOBS, Path(job.runtime.output_dir)
    row: dict[str, Any] = {"job": job.job.num, "folder": folder.name}
    try:
        if composed.get(REFUSED):
            raise ValueError(composed[REFUSED])
        task = list(job.overrides.task)
        paths = [line for line in job.overrides.hydra if line.startswith("hydra.searchpath")]
        kept = [line for line in task if line.startswith("loader.cache_folder=")]
        run = _train_job(composed, task, [*command, *task, *paths], [*command, *kept])
    except BaseException as error:
        with suppress(OSError):
            folder.rmdir()  # Hydra's, if it is empty
        if interruption_of(error) is not None or not isinstance(error, Exception):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        reason = " ".join(explain(error).split())
        _append(path, {**row, "error": reason})
        fail(f"{folder.name}: {reason}")
        if job.sweeper._target_.endswith("BasicSweeper"):  # it reads no score; errors would stop it
            return math.nan
        raise JobFailed(reason) from None
    _append(path, {**row, "monitor": run.monitor, "score": run.score, "scores": run.scores})
    return run.score


def _append(path: Path, row: dict[str, Any]) -> None:
    """Append a line in one write, because jobs may run at the same time."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_jobs(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines of a sweep's jobs from an offset in their file, in the order of the jobs."""
    if not path.is_file():
        return []
    rows = path.read_bytes()[start:].decode("utf-8").splitlines()
    return sorted((json.loads(row) for row in rows), key=lambda row: int(row["job"]))


def _drop_repeated(path: Path) -> None:
    """Keep the newest line of each job: a sweep that is started again writes one again."""
    with suppress(ValueError, LookupError, TypeError, OSError):  # then the lines stay as they are
        rows = _read_jobs(path, 0)
        newest = {row["folder"]: row for row in rows}
        if len(newest) < len(rows):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in newest.values())
            write_whole(path, "".join(lines))


def _print_jobs(rows: Sequence[dict[str, Any]], count: int | None, folder: Path) -> None:
    from captioner.verbs.printing import print_rows

    failed = sum("error" in row for row in rows)
    print(f"\n{_of(len(rows), count)}, {failed} failed, in {short(folder)}")
    results = [
        f"failed: {row['error']}" if "error" in row else f"{row['monitor']} {row['score']:.2f}"
        for row in rows
    ]
    print_rows(list(zip((row["folder"] for row in rows), results)), no_wrap=(0,))
