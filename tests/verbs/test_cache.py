"""The feature cache: its folder, its list, and what clearing keeps."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from captioner.cli import main
from captioner.data import cache, features
from captioner.models.encoders.libraries import build_encoder


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_encoder(
        library="bundled", network="efficientnet_lite0", image_size=32, stage=2, pretrained=False
    )


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"照片 #{place}.png") for place in range(3)]
    for place, path in enumerate(paths):
        Image.new("RGB", (40, 36), (80 * place, 20, 200)).save(path)
    return paths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(encoder, photos, home, **options):
    return features.cache_features(encoder, photos, home, progress=False, **options)


# Folder -----------------------------------------------------------------------------------------


def test_the_cache_folder_follows_environment_variables(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CAPTIONER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache.cache_home() == tmp_path / ".cache" / "captioner"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # ignored, as its specification requires
    assert cache.cache_home() == tmp_path / ".cache" / "captioner"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_home() == tmp_path / "xdg" / "captioner"
    (tmp_path / ".cache" / "captioner").mkdir(parents=True)
    assert cache.cache_home() == tmp_path / ".cache" / "captioner"  # features in it
    (tmp_path / "xdg" / "captioner").mkdir(parents=True)
    assert cache.cache_home() == tmp_path / "xdg" / "captioner"
    monkeypatch.setenv("CAPTIONER_CACHE", "~/mine")
    assert cache.cache_home() == tmp_path / "mine"
    assert cache.cache_home("~/other") == tmp_path / "other"


# The list ---------------------------------------------------------------------------------------


def test_it_lists_encoders_images_size_and_last_use(encoder, photos, home, capsys) -> None:
    before = datetime.now().replace(microsecond=0)
    fill(encoder, photos, home)
    fill(encoder, photos[:2], home, grid=True)
    (home / "notes.txt").write_text("mine")
    assert main(["cache", "--format", "json"]) == 0
    by_kind = {entry["grid"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert by_kind[False]["images"] == 3
    assert by_kind[True]["images"] == 2
    for entry in by_kind.values():
        assert entry["encoder"].startswith("efficientnet_lite0, 32 px")
        assert "stage 2" in entry["encoder"]
        assert before <= datetime.fromisoformat(entry["last_use"]) <= datetime.now()
    pooled = 3 * (cache.ENTRY_BYTES + 2 * encoder.feature_size + 4)  # and a checksum
    about = Path(by_kind[False]["folder"], cache.ABOUT).stat().st_size
    assert by_kind[False]["size"] == pooled + about
    assert main(["cache"]) == 0
    headings, *rows = capsys.readouterr().out.splitlines()
    assert headings.split("\t")[:3] == ["encoder", "kept", "images"]
    assert {tuple(row.split("\t")[1:3]) for row in rows} == {("pooled", "3"), ("grid", "2")}


def test_an_empty_or_absent_cache_is_listed(home, capsys) -> None:
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["cache", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["cache", "clear"]) == 0
    assert "nothing to clear" in capsys.readouterr().out
    assert not home.exists()


@pytest.mark.parametrize("job", ["list", "clear"])
def test_a_missing_folder_is_an_error(job, tmp_path, capsys) -> None:
    gone = tmp_path / "gone"
    assert main(["cache", job, "--folder", str(gone)]) == 1
    message = f"captioner: error: --folder={gone}: no such folder\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.reliability("versions")
def test_features_of_an_earlier_version_are_listed_and_cleared(encoder, photos, home) -> None:
    folder = fill(encoder, photos, home).folder
    for name in (cache.ABOUT, cache.USED):
        (folder / name).unlink()
    (entry,) = cache.cached(home)
    assert (entry.encoder, entry.images) == ("", 3)
    assert cache.clear(home)[0] == [entry]


# Clearing ---------------------------------------------------------------------------------------


def test_clearing_keeps_other_files(encoder, photos, home, capsys) -> None:
    folder = fill(encoder, photos, home).folder
    strangers = [home / "notes.txt", folder / "mine.csv", home / "abc" / "index"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert main(["cache", "clear", "--yes"]) == 0
    assert "features of 1 encoder" in capsys.readouterr().out
    assert all(path.read_text() == "mine" for path in strangers)
    assert {path.name for path in folder.iterdir()} == {"mine.csv", cache.USED, cache.LOCK}
    assert cache.cached(home) == []
    again = fill(encoder, photos, home)
    assert again.encoded == 3


def test_kept_networks_are_counted_and_cleared(home, capsys) -> None:
    file = home / "networks" / "some.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(2_500_000))
    assert main(["cache"]) == 0
    assert f"no features, and networks, 2.5 MB, in {home}" in capsys.readouterr().err
    assert main(["cache", "clear", "--yes", "--older-than", "1"]) == 0 and file.exists()
    assert main(["cache", "clear", "--yes"]) == 0 and not file.exists()
    assert "cleared no features, and networks, 2.5 MB," in capsys.readouterr().out


def test_it_asks_on_a_terminal_and_refuses_elsewhere(
    encoder, photos, home, capsys, monkeypatch
) -> None:
    import io

    fill(encoder, photos, home)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    assert main(["cache", "clear"]) == 1
    assert "add --yes" in capsys.readouterr().err
    assert len(cache.cached(home)) == 1
    for answer, left in (("\n", 1), ("n\n", 1), ("", 1), ("Y\n", 0)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", terminal)
        assert main(["cache", "clear"]) == left
        assert len(cache.cached(home)) == left
        assert "[y/N]" in capsys.readouterr().err


def test_only_features_unused_for_days_are_cleared(encoder, photos, home, capsys) -> None:
    folder = fill(encoder, photos, home).folder
    then = (datetime.now() - timedelta(days=8)).timestamp()
    os.utime(folder / cache.USED, (then, then))
    assert main(["cache", "clear", "--older-than", "9", "--yes"]) == 0
    assert len(cache.cached(home)) == 1
    fill(encoder, photos, home)  # uses it
    assert main(["cache", "clear", "--older-than", "7", "--yes"]) == 0
    assert len(cache.cached(home)) == 1
    os.utime(folder / cache.USED, (then, then))
    assert main(["cache", "clear", "--older-than", "7", "--yes"]) == 0
    assert cache.cached(home) == []
    for days in ("-1", "nan"):
        assert main(["cache", "clear", f"--older-than={days}", "--yes"]) == 1
    assert "give days" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache", "--yes"])


def test_features_in_use_are_kept(encoder, photos, home, capsys) -> None:
    used = fill(encoder, photos, home)
    assert main(["cache", "clear", "--yes"]) == 0
    assert "in use, kept" in capsys.readouterr().err
    assert used.get(photos).pooled.shape == (3, encoder.feature_size)  # the files are opened now
    del used
    with FileLock(cache.cached(home)[0].folder / cache.LOCK):  # another process writes
        assert cache.clear(home)[0] == []
    removed, busy = cache.clear(home)
    assert (len(removed), busy) == (1, [])


def test_listing_needs_no_torch(home) -> None:
    code = (
        "import sys; from captioner.cli import main; main(['cache'])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_empty_folder_is_not_the_default(home, capsys) -> None:
    assert main(["cache", "clear", "--folder", "", "--yes"]) == 1
    assert "--folder='' is empty; give a folder" in capsys.readouterr().err
