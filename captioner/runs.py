"""A run folder: its files, how a run or evaluation is found, and how a folder is claimed.

    RUN/
      config.yaml                            the composed configuration
      checkpoints/best.ckpt, last.ckpt, epoch-NN.ckpt
      logs/csv/version_N/metrics.csv, logs/tensorboard/, logs/wandb/, logs/profile*
      samples.jsonl                          dev captions of each validation
      costs.json                             time, memory and parameters
      evaluation/DATA-SPLIT/DECODING/        scores.json, captions.jsonl, statistics.npz, sheet.png,
                                             config.yaml, report.html
    SWEEP/
      multirun.yaml                          written by Hydra
      jobs.jsonl                             one line for each job
      JOB/                                   a run folder for each job

No other module knows these names.

A training takes the lock of its folder (``flock`` on the folder itself, which the system frees when
the process ends, however that happens, and which leaves no file) and makes the folder of its
checkpoints, which only one process can. Of several processes of one training the first claims the
folder; the others find its name in an environment variable.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from captioner.files import near_file, remove_abandoned, special_kind
from captioner.plain_data import read_json, read_yaml
from captioner.process import is_first

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"
LOGS = "logs"
SAMPLES = "samples.jsonl"
COSTS = "costs.json"

EVALUATION = "evaluation"
SCORES = "scores.json"
CAPTIONS = "captions.jsonl"
STATISTICS = "statistics.npz"
SHEET = "sheet.png"
REPORT = "report.html"

SWEEP = "multirun.yaml"
"""Written by Hydra in the folder of a sweep, next to the folders of its jobs."""
JOBS = "jobs.jsonl"
"""In the folder of a sweep: a line for each job, with its scores or the reason why it failed."""

VARIABLE = "CAPTIONER_RUN_DIR"
"""Names the claimed folder to the other processes of a training."""

_OWN = (CHECKPOINTS, CONFIG, LOGS, SAMPLES, COSTS)
_WRITTEN = (
    *(*_OWN, EVALUATION, REPORT, JOBS, SWEEP, f"{CHECKPOINTS}/*"),
    *(f"{LOGS}/*", f"{LOGS}/csv/*", f"{LOGS}/csv/*/*", f"{LOGS}/tensorboard/*"),
    *(f"{EVALUATION}/*", f"{EVALUATION}/*/*", f"{EVALUATION}/*/*/*"),
)
"""The files and folders in the folder of a run, an evaluation or a sweep that are written to."""
_FILES = (
    *("metrics.csv", CONFIG, SAMPLES, COSTS, SCORES, CAPTIONS, STATISTICS, SHEET, REPORT),
    *(JOBS, SWEEP),
)
"""Names of files in them, other than checkpoints."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


# Checkpoints ----------------------------------------------------------------------------------


def checkpoint_file(run: Path, name: str = BEST) -> Path:
    """The file of a checkpoint in a run folder: BEST, LAST, or that of an epoch."""
    return run / CHECKPOINTS / name


def epoch_file(run: Path, epoch: int) -> Path:
    """The file of the checkpoint of an epoch, counted from 1, in a run folder."""
    return checkpoint_file(run, f"epoch-{epoch:02d}.ckpt")


def epoch_files(run: Path) -> list[Path]:
    """The checkpoints of epochs that a run folder has kept, in order of their names."""
    return sorted((run / CHECKPOINTS).glob("epoch-*.ckpt"))


def checkpoint_files(run: Path) -> list[Path]:
    """All checkpoints in a run folder, in order of their names."""
    return sorted((run / CHECKPOINTS).glob("*.ckpt"))


def kept_epochs(run: Path) -> dict[int, Path]:
    """The checkpoints of epochs that a run folder has kept, by the number of the epoch."""
    named = ((re.fullmatch(r"epoch-(\d+)\.ckpt", file.name), file) for file in epoch_files(run))
    return {int(match[1]): file for match, file in named if match}


def find_checkpoint(path: Path, name: str = BEST) -> Path | None:
    """The checkpoint of a run folder, or of its folder of checkpoints; None without any.

    Args:
        path: the folder.
        name: the checkpoint that is wanted; if it is missing, LAST is used; if it is there but no
            file, it is an error when it is read.
    """
    places = (checkpoint_file(path, name), path / name, checkpoint_file(path, LAST), path / LAST)
    return next((file for file in places if os.path.lexists(file)), None)


def checkpoint_run(file: Path) -> Path:
    """The run folder of a checkpoint file; the file's folder if it is not in a run."""
    return file.parent.parent if file.parent.name == CHECKPOINTS else file.parent


def is_unstarted(run: Path) -> bool:
    """Whether a folder is that of a training that was killed before its first checkpoint."""
    return (run / CHECKPOINTS).is_dir() and not checkpoint_files(run)


def has_ended(run: Path) -> bool:
    """Whether the training of a run has come to its end: it is not running or interrupted.

    Older costs do not say so; then it has ended if all its epochs are done. A training that is
    killed between its last two writes, costs and last checkpoint, counts as ended.
    """
    try:
        costs = read_json(run / COSTS, fault="damaged")
        if type(costs.get("ended")) is bool:
            return costs["ended"]
        epochs = read_yaml(run / CONFIG, fault="damaged")["trainer"]["max_epochs"]
        return costs["epochs"] >= epochs >= 0
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, in order of their names."""
    return sorted(path.parent for path in folder.glob(f"*/{CHECKPOINTS}"))


def metric_files(run: Path) -> list[Path]:
    """The CSV logs of a run, one for each time that it was started or resumed, oldest first."""
    files = run.glob(f"{LOGS}/csv/version_*/metrics.csv")
    return sorted(files, key=lambda path: path.stat().st_mtime)


# Evaluations ----------------------------------------------------------------------------------


def evaluation_folder(run: Path, *, data: str, split: str, decoding: str) -> Path:
    """The folder in a run for the evaluation of a split of a dataset with a decoding label."""
    return run / EVALUATION / f"{data}-{split}" / decoding


def evaluations(run: Path, decoding: str = "*") -> list[Path]:
    """The evaluation folders of a run, or those with a decoding label, in order of their names."""
    return sorted(file.parent for file in run.glob(f"{EVALUATION}/*/{decoding}/{SCORES}"))


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is that of an evaluation."""
    return (folder / SCORES).is_file()


def evaluation_run(folder: Path) -> Path | None:
    """The run folder that an evaluation folder is in; None if it is not in a run."""
    parents = folder.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == EVALUATION else None


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, which has the run folders of its jobs."""
    return (folder / SWEEP).is_file()


def find_evaluation(
    path: Path,
    *,
    split: str | None = None,
    decoding: str | None = None,
    name: str | Path | None = None,
) -> Path:
    """The evaluation folder that a path names.

    Args:
        path: a run folder, whose newest evaluation is used, except those of ensembles
            and of checkpoints other than the best one (named with @); an evaluation folder; a
            scores.json.
        split: consider only a run's evaluations of this split.
        decoding: consider only a run's evaluations with this decoding label, such as beam3-lp0.7.
        name: of the model, for the error that says how to evaluate it; None: the path.

    Raises:
        FileNotFoundError: the path does not exist, or the run has no such evaluation.
        ValueError: it is the folder of a sweep, or a file with another name.
    """
    if not path.exists():
        missing = f"{path}: no such run folder, evaluation folder or {SCORES}"
        raise FileNotFoundError(missing + near_file(path))
    if path.is_file() and path.name != SCORES:
        raise ValueError(f"{path}: not a run, an evaluation folder or a {SCORES}")
    if path.is_file():
        return path.parent
    if is_evaluation(path):
        return path
    if is_sweep(path):
        jobs = f"{shlex.quote(str(path))}/*"
        raise ValueError(f"{path}: a sweep of several runs, not a run; name them: {jobs}")
    matching = [
        folder
        for folder in evaluations(path)
        if (split is None or folder.parent.name.endswith(f"-{split}"))
        and (folder.name == decoding if decoding else "@" not in folder.name)
    ]
    if matching:
        return max(matching, key=lambda folder: (folder / SCORES).stat().st_mtime_ns)
    raise _no_evaluation(path, path if name is None else name, split)


def _no_evaluation(run: Path, name: str | Path, split: str | None) -> FileNotFoundError:
    existing = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in evaluations(run))
    if not existing and name == run and find_checkpoint(run) is None:
        return FileNotFoundError(f"{run}: not a run: it has neither checkpoints nor evaluations")
    command = f"captioner evaluate {shlex.quote(str(name))}"
    command += f" --split {split}" if split else ""
    found = f"only {existing}" if existing else "no evaluation"
    return FileNotFoundError(f"{run}: has {found}; make one with: {command}")


def require_closed(run: Path) -> None:
    """Check that what is written into the folder of a run, evaluation or sweep stays inside of it.

    The folder may come from a stranger, with symbolic links, pipes and devices in it; it may be a
    link itself.

    Raises:
        ValueError: a link leads out of the folder; a pipe, socket, device or folder has the place
            of a file.
    """
    inside = run.resolve()
    for pattern in _WRITTEN:
        for path in run.glob(pattern):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"{path}: a symbolic link that leads out of {run}, so nothing is written "
                    "there; replace it by what it links to, or move the whole folder and link to "
                    "that"
                )
            kind = special_kind(path)
            is_file = path.name in _FILES or path.suffix == ".ckpt"
            if kind and (is_file or kind != "a folder"):
                raise ValueError(f"{path}: {kind}, which no run has there; remove it")


# Claiming -------------------------------------------------------------------------------------


class Taken(ValueError):
    """A folder that has a run, or that another training has claimed."""


class Claim:
    """A run folder that belongs to this training until it ends.

    Attributes:
        folder: the run folder.
        keep: whether the folder is kept if the training fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.keep = folder, False
        self._lock: int | None = None
        self._made: list[Path] = []  # folders that did not exist, the innermost first
        self._before: set[str] = set()  # names in the folder before

    def take(self, *, resumes: bool) -> Claim:
        """Claim the folder.

        Raises:
            Taken: another training has claimed it; or it has a run, which is not resumed.
            ValueError: a symbolic link in it leads out of it.
            OSError: the folder cannot be made.
        """
        folder = self.folder
        self.keep = resumes
        self._made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            require_closed(folder)
            self._lock = _locked(folder)
            for place in (folder, folder / CHECKPOINTS, *folder.glob(f"{LOGS}/csv/version_*")):
                if place.is_dir():
                    remove_abandoned(place)
            self._before = set(os.listdir(folder))
            if not resumes:
                self._require_new()
        except OSError as error:
            self._give_up()
            raise OSError(error.errno, error.strerror, f"run_dir={folder}") from None
        except ValueError:
            self._give_up()
            raise
        return self

    def _give_up(self) -> None:
        self.release()
        self._remove_empty(*self._made)

    def _require_new(self) -> None:
        try:
            (self.folder / CHECKPOINTS).mkdir()
        except FileExistsError:
            existing = sorted(os.listdir(self.folder / CHECKPOINTS))
            if existing:
                raise _has_run(self.folder, existing) from None
            if (
                self._lock is None
            ):  # a lock means that the run was killed before its first checkpoint
                raise _busy(self.folder) from None

    def release(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for processes forked meanwhile
            os.close(self._lock)
            self._lock = None

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(checkpoint_files(self.folder))

    def discard(self) -> None:
        """Remove the files of this training, and the folder if it is empty then."""
        for name in set(_OWN) - self._before:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._remove_empty(self.folder / CHECKPOINTS, *self._made)

    @staticmethod
    def _remove_empty(*folders: Path) -> None:
        for path in folders:
            with suppress(OSError):  # it does not exist, or is not empty
                path.rmdir()


@contextmanager
def claimed(folder: Path, *, resumes: bool = False) -> Iterator[Claim]:
    """Claim a run folder during a training, and remove it if the training fails at once.

    If the folder is taken and its name is a date, the default, the next free name is used (DATE_2);
    any other name is refused.

    Args:
        folder: the run folder; ``~`` is the home folder.
        resumes: whether it has a run that is resumed.

    Raises:
        Taken: another training has claimed it, or it has a run.
        OSError: it cannot be made.
    """
    claim = _claim(Path(os.path.expanduser(folder)), resumes)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.path.abspath(claim.folder)
    try:
        yield claim
    except BaseException as error:
        # A full disk, for example: without a checkpoint nothing can be resumed.
        empty = isinstance(error, OSError) and not claim.has_checkpoint()
        if is_first() and (empty or not claim.keep):
            claim.discard()
        raise
    finally:
        claim.release()
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _claim(folder: Path, resumes: bool) -> Claim:
    if not is_first():
        return Claim(Path(os.environ.get(VARIABLE, folder)))
    if resumes or not _DATE.fullmatch(folder.name):
        return Claim(folder).take(resumes=resumes)
    for number in itertools.count(1):
        name = folder.name if number == 1 else f"{folder.name}_{number}"
        with suppress(Taken):
            return Claim(folder.with_name(name)).take(resumes=False)
    raise AssertionError


def _locked(folder: Path) -> int | None:
    """The lock of a folder; None if the file system has no locks."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _busy(folder) from None
    except OSError:
        os.close(handle)
        return None
    return handle


def _has_run(folder: Path, checkpoints: list[str]) -> Taken:
    if LAST in checkpoints:
        return Taken(
            f"run_dir={folder} already has a run: {shlex.quote(f'resume={folder}')} resumes it, or "
            "choose another run_dir"
        )
    return Taken(
        f"run_dir={folder} already has a run, with {', '.join(checkpoints)} but without {LAST}, so "
        f"it cannot be resumed; choose another run_dir "
        f"({shlex.quote(f'resume_weights={folder}')} starts from its weights)"
    )


def _busy(folder: Path) -> Taken:
    return Taken(
        f"run_dir={folder}: another training uses this folder; wait until it ends, or choose "
        "another run_dir"
    )
