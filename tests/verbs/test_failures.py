"""Exceptions on the command line: one line with advice, and no traceback."""

import errno
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from captioner import cli
from captioner.verbs.failures import explain


class WorkerError(ValueError):
    """As raised again by DataLoader in the main process."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("loader.workers=-1 is not accepted"), "loader.workers=-1 is not accepted"),
        (FileNotFoundError("runs/x: no such run"), "runs/x: no such run"),
        (MisconfigurationException("limit is 0.1"), "limit is 0.1"),
        (HydraException("not a sweep"), "not a sweep"),
        (OSError(errno.ENOSPC, "No space left", "a.ckpt"), "a.ckpt: no space left; free some"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa: file name too long; cho"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied; choose"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "/x: no such file; check the"),
        (MemoryError(), "out of memory; lower loader.batch_size"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
         "out of memory (20.00 GiB could not be allocated); lower"),
        (WorkerError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent "
            "call last):\n  File x\nValueError: a.png: cannot be read\n"
        ), "a.png: cannot be read"),
        (KeyError("dev"), "KeyError: 'dev' (unexpected; CAPTIONER_TRACEBACK=1 shows the"),
    ],
)  # fmt: skip
def test_an_exception_is_one_line_with_advice(error: Exception, says: str) -> None:
    assert explain(error).startswith(says)
    assert "\n" not in explain(error)


def test_out_of_memory_is_recognized_by_messages_of_torch() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert explain(error.value).startswith(
        "out of memory (4,194,304.0 GiB could not be allocated); l"
    )


def test_an_interpolation_error_says_how_to_write_it_literally() -> None:
    config = OmegaConf.create({"data": {"root": "${z}"}})
    with pytest.raises(OmegaConfBaseException) as error:
        OmegaConf.to_container(config, resolve=True)
    assert explain(error.value) == (
        "data.root: Interpolation key 'z' not found; for a literal ${ write \\${"
    )


def verb_that(monkeypatch: pytest.MonkeyPatch, run) -> None:
    verb = SimpleNamespace(run=lambda argv: run())
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: verb)


def failing(error: BaseException):
    def run() -> int:
        raise error

    return run


def test_an_unexpected_error_is_one_line_unless_a_traceback_is_requested(
    monkeypatch, capsys
) -> None:
    verb_that(monkeypatch, failing(ZeroDivisionError("0 to a\nnegative power")))
    assert cli.main(["models"]) == 1
    assert capsys.readouterr().err == (
        "captioner: error: ZeroDivisionError: 0 to a negative power (unexpected; "
        "CAPTIONER_TRACEBACK=1 shows the traceback)\n"
    )
    monkeypatch.setenv("CAPTIONER_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


@pytest.mark.reliability("interrupted")
def test_sigterm_raises_keyboard_interrupt_and_its_handler_is_restored(monkeypatch, capsys) -> None:
    unwound = []

    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(1)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    verb_that(monkeypatch, run)
    assert cli.main(["models"]) == 130
    assert unwound == [1]
    assert capsys.readouterr().err == "captioner: error: terminated (SIGTERM)\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_warning_is_one_line_only_on_the_command_line(monkeypatch, capsys) -> None:
    verb = SimpleNamespace(
        run=lambda argv: warnings.warn("look at\nthe encoder", stacklevel=1) or 0
    )
    monkeypatch.setitem(sys.modules, "captioner.verbs.models", verb)
    before = warnings.showwarning
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().err == "captioner: warning: look at the encoder\n"
    assert warnings.showwarning is before
    monkeypatch.setenv("CAPTIONER_TRACEBACK", "1")
    with pytest.warns(UserWarning, match="look at"):  # with its location, as in Python
        cli.main(["models"])


def test_a_closed_output_ends_without_a_message(monkeypatch, capfd) -> None:
    verb_that(monkeypatch, failing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=failing(ValueError())))
    assert cli.main(["models"]) == 141
    assert capfd.readouterr().err == ""
