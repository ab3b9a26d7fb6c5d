"""Files are written completely or not at all."""

import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from captioner import files
from captioner.files import (
    near_file,
    partial,
    to_json,
    whole_file,
    write_folder,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.reliability("interrupted")
def test_a_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = write_whole(tmp_path / "deep" / "文.txt", "vier\r\nfünf")
    assert path.read_bytes() == "vier\r\nfünf".encode()
    write_whole(path, b"\x00six")
    assert path.read_bytes() == b"\x00six"

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("captioner.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "lost")
    assert path.read_bytes() == b"\x00six"
    assert names(path.parent) == ["文.txt"]


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_interruption_at_any_line_leaves_nothing_else(tmp_path, record_property, what) -> None:
    """Signals are handled between two lines."""

    def write() -> None:
        if what == "file":
            write_whole(tmp_path / "a", "new")
        else:
            write_folder(tmp_path / "folder", {"a": "new"})

    def lines_until(last: int) -> int:
        """Write, with an interruption at a line; how many lines were executed."""
        count = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                count += 1
                if count == last:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            write()
        finally:
            sys.settrace(before)
        return count

    (tmp_path / "a").write_text("old")
    written, lines = [], lines_until(-1)
    for number in range(1, lines + 1):
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        (tmp_path / "a").write_text("old")
        with pytest.raises(KeyboardInterrupt):
            lines_until(number)
        written.append((tmp_path / "folder").exists() or (tmp_path / "a").read_text() == "new")
        assert set(names(tmp_path)) <= {"a", "folder"}, number
    assert lines > 15 and written[0] is False and written[-1] is True
    record_property("cases", lines)


def test_lone_surrogates_are_escaped_as_in_json(tmp_path) -> None:
    value = {"名": "caf\udce9.png \ud83d"}
    path = write_whole(tmp_path / "a.json", json.dumps(value, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert json.loads(to_json(value).encode("utf-8")) == value
    assert "名" in to_json(value)


def test_a_file_keeps_its_permissions(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    write_whole(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)


def test_a_symbolic_link_is_followed(tmp_path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.txt").write_text("old")
    (tmp_path / "link").symlink_to("far/real.txt")
    (tmp_path / "second").symlink_to("link")
    write_whole(tmp_path / "second", "new")
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "real.txt").read_text() == "new"
    (tmp_path / "dangling").symlink_to("far/later.txt")
    write_whole(tmp_path / "dangling", "born")
    assert (tmp_path / "far" / "later.txt").read_text() == "born"


def test_pipes_and_devices_are_written_directly(tmp_path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    write_whole(fifo, [b"one ", b"two"])
    reader.join()
    assert read == ["one two"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    device = os.stat(os.devnull)
    write_whole(os.devnull, "nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert os.stat(os.devnull).st_ino == device.st_ino


def test_standard_output_is_not_truncated(capfd, tmp_path) -> None:
    print("before", flush=True)
    write_whole("/dev/stdout", "between\n")
    write_whole("/dev/fd/1", "between\n")
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nbetween\nbetween\nafter\n"


def test_a_folder_is_refused_before_any_work(tmp_path) -> None:
    taken: list[int] = []
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        write_whole(tmp_path, (taken.append(1) or b"x" for _ in range(3)))
    assert not taken


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_incomplete_file_may_be_kept(error, tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("precious")

    def pieces():
        yield b"one,"
        raise error

    with pytest.raises(error):
        write_whole(path, pieces(), keep=True)
    assert path.read_text() == "precious"
    assert partial(path).read_text() == "one,"
    assert names(tmp_path) == ["a.csv", "a.csv.partial"]
    with pytest.raises(error):
        write_whole(tmp_path / "b.csv", pieces())
    assert names(tmp_path) == ["a.csv", "a.csv.partial"]


def test_errors_name_the_requested_file(tmp_path, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "a.txt") as file:
        file.write(b"x")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_path_that_does_not_exist_is_compared_with_its_neighbors(tmp_path: Path) -> None:
    (tmp_path / "lstm-192-seed1").mkdir()
    (tmp_path / "别的").touch()
    suggestion = f" (did you mean {tmp_path / 'lstm-192-seed1'}?)"
    assert near_file(tmp_path / "lstn-192-seed1") == suggestion
    assert near_file(tmp_path / "demo") == ""
    assert near_file(tmp_path / "absent" / "lstm-192-seed1") == ""


@pytest.mark.reliability("interrupted")
def test_temporary_files_of_killed_processes_are_removed(tmp_path) -> None:
    """Those of running processes, and names of another kind, stay."""
    before = {".0123456789abcdef.tmp", ".fedcba9876543210.tmp", "mine.tmp", ".0123.tmp"}
    for name in before:
        (tmp_path / name).write_bytes(b"half")
    folder = tmp_path / ".00000000000000ff.tmp"
    (folder / "below").mkdir(parents=True)
    (tmp_path / ".1111111111111111.tmp").symlink_to(tmp_path / "mine.tmp")
    with open(tmp_path / ".fedcba9876543210.tmp") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with whole_file(tmp_path / "now") as first:
            first.write(b"1")
            write_whole(tmp_path / "other", b"2")
    left = before - {".0123456789abcdef.tmp"} | {"now", "other", ".1111111111111111.tmp"}
    assert set(names(tmp_path)) == left
    assert [(tmp_path / name).read_bytes() for name in ("now", "other")] == [b"1", b"2"]
    assert (tmp_path / "mine.tmp").read_bytes() == b"half"


@pytest.mark.reliability("interrupted")
def test_a_folder_that_is_written_whole_leaves_nothing_else(tmp_path, monkeypatch) -> None:
    write_folder(tmp_path / "new" / "folder", {"a": b"1", "b": "2"})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "new",
        "new/folder",
        "new/folder/a",
        "new/folder/b",
    ]
    with pytest.raises(OSError):
        write_folder(tmp_path / "new" / "folder", {"a": b"3"})
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
