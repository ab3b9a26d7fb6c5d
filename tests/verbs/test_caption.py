"""``captioner caption``: its input files, and its output."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from captioner.api import Captioner
from captioner.cli import main
from captioner.verbs import caption_files


@pytest.fixture
def pictures(scenes, tmp_path) -> Path:
    """A folder of three pictures, one of them with a name that is not UTF-8."""
    folder = tmp_path / "my photos #1"
    folder.mkdir()
    names = ["a.png", "b 文.png", os.fsdecode(b"caf\xe9.png")]
    for name, source in zip(names, sorted((scenes / "images").glob("test_*.png"))):
        (folder / name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture
def strict(monkeypatch):
    """A function that returns the bytes written to standard output with encoding utf-8:strict."""

    def begin() -> io.BytesIO:
        written = io.BytesIO()
        text = io.TextIOWrapper(written, encoding="utf-8", errors="strict", newline="\n")
        monkeypatch.setattr(sys, "stdout", text)
        return written

    return begin


def caption(run, *argv: object) -> int:
    return main(["caption", "--model", str(run), *map(str, argv)])


# Folders --------------------------------------------------------------------------------------


def test_jpegs_with_other_suffixes_are_read_and_skipped_files_are_counted(
    run, tmp_path, capsys
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("1.jfif", "2.jpe", "3.MPO", "deep/4.jpg"):
        Image.new("RGB", (48, 48), "red").save(folder / name, "JPEG")
    for name in ("a.txt", "deep/b.TXT", "c.cr2", "README"):
        (folder / name).write_text("no image")
    assert caption(run, folder) == 0
    out, err = capsys.readouterr()
    files = [line.partition(": ")[0] for line in out.splitlines()]
    assert files == [str(folder / n) for n in ("1.jfif", "2.jpe", "3.MPO", "deep/4.jpg")]
    counts = "2 .txt, 1 .cr2, 1 without a suffix"
    assert err in {
        f"captioner: note: {folder}: {counts} skipped\n",
        f"captioner: note: {folder}: 2 .txt, 1 without a suffix, 1 .cr2 skipped\n",
    }


def test_without_the_extra_heic_is_skipped_in_one_line_with_its_name(
    run, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(caption_files, "unreadable_suffixes", lambda: {".heic", ".heif"})
    Image.new("RGB", (48, 48), "red").save(tmp_path / "1.jpg")
    for name in ("2.heic", "3.HEIC"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert caption(run, tmp_path) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "2 .heic skipped; to read HEIC: pip install 'captioner[heic]'" in error
    (tmp_path / "1.jpg").unlink()
    assert caption(run, tmp_path) == 1
    assert "but 2 .heic; to read HEIC: pip install 'captioner[heic]'" in capsys.readouterr().err


def test_links_to_folders_are_followed_once(run, tmp_path, capsys) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for place in (folder / "z", elsewhere):
        place.mkdir(parents=True)
        Image.new("RGB", (48, 48), "red").save(place / "1.png")
    (folder / "a").symlink_to(elsewhere)
    (folder / "b").symlink_to(folder / "z")  # inside, so its images are captioned only once
    (elsewhere / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert caption(run, folder) == 0
    out, err = capsys.readouterr()
    files = [line.partition(": ")[0] for line in out.splitlines()]
    assert files == [str(folder / "a" / "1.png"), str(folder / "z" / "1.png")]
    assert err == f"captioner: note: {folder}: 1 broken link skipped\n"


def test_no_path_at_all_is_an_error(run, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "deep").mkdir()
    for content, path, message in (
        (b"\n", "-", "captioner: error: -: standard input has no paths; write one per line\n"),
        (b"", f"{tmp_path}/d*p", f"captioner: error: {tmp_path}/d*p: matches folders only"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert caption(run, path) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(message)


# Names ----------------------------------------------------------------------------------------


def test_any_file_name_is_printed_unchanged(run, pictures, strict) -> None:
    written = strict()
    assert caption(run, pictures) == 0
    lines = written.getvalue().splitlines()
    expected = [os.fsencode(pictures / name) for name in sorted(os.listdir(pictures))]
    assert [line.partition(b": ")[0] for line in lines] == expected


@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_any_file_name_is_written(form, run, pictures, tmp_path, strict) -> None:
    file, written = tmp_path / "out", strict()
    assert caption(run, pictures, "--format", form) == 0
    assert caption(run, pictures, "--format", form, "--output", file) == 0
    content = file.read_bytes()
    assert content == written.getvalue()
    names = [os.fsencode(pictures / name) for name in sorted(os.listdir(pictures))]
    if form == "json":
        rows = json.loads(content.decode("utf-8"))
        paths = [os.fsencode(row["image"]) for row in rows]
    else:
        text = content.decode("utf-8", "surrogateescape")
        rows = list(csv.reader(io.StringIO(text)))[1:] if form == "csv" else []
        lines = [row[0] for row in rows] or [line.split(": ")[0] for line in text.splitlines()]
        paths = [os.fsencode(line) for line in lines]
    assert paths == names


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_may_contain_any_file_name(end, run, pictures, strict, monkeypatch) -> None:
    names = [os.fsencode(pictures / name) for name in sorted(os.listdir(pictures))]
    listed = io.BytesIO(end.join([*names, b""]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed, encoding="utf-8", errors="strict"))
    written = strict()
    assert caption(run, "-") == 0
    assert [line.partition(b": ")[0] for line in written.getvalue().splitlines()] == names


def test_samples_of_a_training_may_have_any_name(tmp_path) -> None:
    from types import SimpleNamespace

    from captioner.training.callbacks import SampleCaptions

    trainer = SimpleNamespace(
        sanity_checking=False, current_epoch=0, loggers=[], is_global_zero=True
    )
    module = SimpleNamespace(dev_captions=[("caf\udce9.png", "a dog", ("half \ud83d",))])
    SampleCaptions(tmp_path / "samples.jsonl", 4).on_validation_end(trainer, module)
    row = json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8"))
    assert (row["image"], row["references"]) == ("caf\udce9.png", ["half \ud83d"])


# --output -------------------------------------------------------------------------------------


def test_output_goes_through_a_pipe_and_leaves_links_and_permissions(
    run, pictures, tmp_path, capsys
) -> None:
    image = pictures / "a.png"
    assert caption(run, image) == 0
    expected = capsys.readouterr().out
    fifo, real, link = (tmp_path / name for name in ("fifo", "real.txt", "link.txt"))
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    assert caption(run, image, "--output", fifo) == 0
    reader.join()
    assert read == [expected]
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real.txt")
    assert caption(run, image, "--output", link) == 0
    assert link.is_symlink()
    assert real.read_text() == expected
    assert real.stat().st_mode & 0o777 == 0o600
    assert caption(run, image, "--output", os.devnull) == 0
    assert not Path(os.devnull).is_file()


def test_a_folder_created_for_the_output_is_named(
    run, pictures, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(pictures)
    file = tmp_path / "new" / "folder" / "x.csv"
    for message in (f"wrote {file} (made the folder {tmp_path / 'new'})\n", f"wrote {file}\n"):
        assert caption(run, "a.png", "--output", file) == 0
        assert capsys.readouterr() == ("", message)


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_captions_before_a_failure_are_kept_in_a_partial_file(
    form, run, pictures, tmp_path, capsys, monkeypatch
) -> None:
    caption_features, calls = Captioner.caption_features, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the third batch is too much")
        return caption_features(self, *args, **options)

    monkeypatch.setattr(Captioner, "caption_features", failing)
    file = tmp_path / "out"
    file.write_text("precious")
    assert caption(run, pictures, "--batch-size", 1, "--format", form, "--output", file) == 1
    assert file.read_text() == "precious"
    content = (tmp_path / "out.partial").read_text(encoding="utf-8")
    assert content.count("a.png") == 1
    assert content.count("b 文.png") == 1
    error = capsys.readouterr().err
    assert f"the captions so far are in {file}.partial" in error
    assert "the third batch is too much" in error


def test_the_first_caption_is_written_before_the_second_picture_is_read(
    run, pictures, monkeypatch
) -> None:
    prepare, printed, written = Captioner.prepare, [], io.StringIO()

    def watched(self, image):
        printed.append(len(written.getvalue().splitlines()))
        return prepare(self, image)

    monkeypatch.setattr(Captioner, "prepare", watched)
    monkeypatch.setattr(sys, "stdout", written)
    assert caption(run, *sorted(pictures.iterdir())[:2]) == 0
    assert printed == [0, 1]


# The command line -----------------------------------------------------------------------------


def test_flags_may_be_between_paths(run, pictures, tmp_path, capsys) -> None:
    a, b = pictures / "a.png", pictures / "b 文.png"
    for argv in (
        ["caption", a, "--beam-size", 2, b, "--model", run],
        ["caption", "--model", run, a, b, "--beam-size", 2],
        ["caption", "--model", run, "--beam-size", 2, a, b],
    ):
        assert main(list(map(str, argv))) == 0
        out = capsys.readouterr().out
        assert [line.partition(": ")[0] for line in out.splitlines()] == [str(a), str(b)]


@pytest.mark.parametrize(
    ("words", "file"), [(["-x.png"], "-x.png"), (["a.png", "-mé(1).png"], "-mé(1).png")]
)
def test_a_file_that_begins_with_a_hyphen_gets_its_path(
    tmp_path, capsys, monkeypatch, words: list[str], file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        main(["caption", *words])
    assert ended.value.code == 2
    advised = shlex.split(capsys.readouterr().err.partition("write ")[2].partition("; see")[0])
    assert advised == [f"./{file}"]


def test_control_characters_of_a_name_are_escaped_in_text(run, pictures, capsys) -> None:
    name = "x\ncaptioner: error: forged\x1b[2J.png"
    (pictures / name).write_bytes((pictures / "a.png").read_bytes())
    (pictures / f"bad {name}").write_bytes(b"no image")
    capsys.readouterr()
    assert caption(run, pictures / name, pictures / f"bad {name}") == 1
    printed = capsys.readouterr()
    [line], [error] = printed.out.splitlines(), printed.err.splitlines()
    assert "/x\\ncaptioner: error: forged\\x1b[2J.png: " in line
    assert "/bad x\\ncaptioner: error: forged\\x1b[2J.png" in error
    assert caption(run, pictures / name, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["image"] == str(pictures / name)


def test_an_override_among_the_paths_gets_the_name_of_its_flag() -> None:
    with pytest.raises(ValueError, match="options are flags here: --beam-size 3$"):
        list(caption_files.find_images(["decoding.beam_size=3"]))


def test_absent_files_are_named_and_the_others_captioned(run, scenes, tmp_path, capsys) -> None:
    photo = str(scenes / "images" / "test_00000.png")
    absent = [str(tmp_path / name) for name in ("a.png", "b.png")]
    command = ["caption", absent[0], photo, absent[1], "--model", str(run)]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{photo}: ") and printed.out.count("\n") == 1
    for path in absent:
        assert f"captioner: error: {path}: no such file or folder" in printed.err
    assert main(["caption", *absent, "--model", str(run)]) == 1
    printed = capsys.readouterr()
    assert not printed.out and all(path in printed.err for path in absent)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_gives_no_traceback(unbuffered) -> None:
    verb = f"{sys.executable} -m captioner completion bash"
    for command in (f"set -o pipefail; {verb} | head -n 1", f"{verb} > /dev/full"):
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        full = "captioner: error: writing or reading a file: no space left on device"
        assert done.stderr.startswith(full) if "full" in command else done.stderr == ""
        # 0 if everything was written before head ended
        assert done.returncode in ((1,) if "full" in command else (0, 141))


def test_captioning_ends_without_a_message_if_the_output_is_closed(
    run, pictures, monkeypatch
) -> None:
    """As after ``| head``: the status of a process that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert caption(run, pictures) == 141


def test_a_photograph_is_not_replaced_by_its_caption(run, pictures, capsys) -> None:
    photo = pictures / "a.png"
    before = photo.read_bytes()
    assert caption(run, photo, "--output", photo) == 1
    assert "is read by this command" in capsys.readouterr().err
    other = pictures / "b 文.png"
    assert caption(run, photo, "--output", other) == 1
    assert "choose another name" in capsys.readouterr().err
    assert photo.read_bytes() == before
