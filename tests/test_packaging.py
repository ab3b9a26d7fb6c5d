"""A wheel, an installation elsewhere, and a plain clone: all find conf/ and work."""

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from captioner.checkpoints import bundle
from captioner.checkpoints.export import export_bundle

ROOT = Path(__file__).resolve().parent.parent
YAML = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}


@pytest.fixture(scope="module")
def source(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a clone without build outputs, and with one more bundled model."""
    target = tmp_path_factory.mktemp("source") / "captioner"
    for name in ("captioner", "conf", "README.md", "LICENSE", "setup.cfg", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, target / name)
    export_bundle(run, target / "captioner" / "bundled" / "tiny")
    (target / "captioner" / "bundled" / "tiny" / "config.yaml").write_text("left by an evaluation")
    return target


def built(kind: str, source: Path, folder: Path) -> Path:
    build = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


def python(code: str, path: Path, folder: Path) -> str:
    """Run Python in another folder, with captioner from `path` alone."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_contains_every_yaml_and_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.removeprefix("captioner/") for name in names if name.endswith(".yaml")} == YAML
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "captioner").rglob("*.py")}
    assert modules <= names
    assert "captioner/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "datasets", "conf/"))]


def test_wheel_and_sdist_contain_bundled_models(wheel: Path, source: Path, tmp_path) -> None:
    files = {bundle.CARD, bundle.MODEL, bundle.WEIGHTS, bundle.TRAINING}
    with tarfile.open(built("sdist", source, tmp_path / "sdist")) as archive:
        parts = [Path(name).parts[1:] for name in archive.getnames()]
    for names in ([Path(name).parts for name in zipfile.ZipFile(wheel).namelist()], parts):
        packaged = {
            parts[3] for parts in names if parts[1:3] == ("bundled", "tiny") and len(parts) == 4
        }
        assert packaged == files


@pytest.mark.parametrize("kind", ["wheel", "clone"])
def test_it_works_in_another_folder(
    kind: str, wheel: Path, source: Path, tmp_path, run_copy
) -> None:
    """An unpacked wheel and a clone compose the configuration and caption a picture."""
    place = source
    if kind == "wheel":
        place = tmp_path / "site"
        zipfile.ZipFile(wheel).extractall(place)
    checkpoint, picture = run_copy
    code = (
        "import captioner, captioner.config as c, captioner.cli as m\n"
        "print(captioner.__file__); print(c.conf_folder())\n"
        "assert c.compose(['experiment=demo', 'decoder.cell=gru'])['decoder']['cell'] == 'gru'\n"
        f"m.main(['caption', {str(picture)!r}, '--model', {str(checkpoint)!r}])\n"
        f"m.main(['caption', {str(picture)!r}, '--model', 'tiny'])"
    )
    lines = python(code, place, tmp_path).splitlines()
    assert lines[0] == str(place / "captioner" / "__init__.py")
    conf = place / "captioner" / "conf" if kind == "wheel" else place / "conf"
    assert lines[1] == str(conf)
    assert lines[2].startswith(f"{picture}: ")
    assert lines[3] == lines[2]


def test_it_works_from_this_installation(tmp_path, run_copy) -> None:
    """`captioner` as it is installed here (editable, in development), from another folder."""
    checkpoint, picture = run_copy
    command = shutil.which("captioner", path=str(Path(sys.executable).parent))
    assert command is not None, "install the package first: pip install -e ."
    done = subprocess.run(
        [command, "caption", str(picture), "--model", str(checkpoint)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{picture}: ")


@pytest.fixture
def run_copy(run, scenes, tmp_path) -> tuple[Path, Path]:
    """A checkpoint and a picture, copied away from the run and the data."""
    (tmp_path / "away").mkdir()
    checkpoint = shutil.copy(run_best(run), tmp_path / "away" / "model.ckpt")
    picture = shutil.copy(scenes / "images" / "test_00000.png", tmp_path / "away" / "photo.png")
    return Path(checkpoint), Path(picture)


def run_best(folder: Path) -> Path:
    from captioner.checkpoints.checkpoint import find

    return find(folder)


# Locked dependencies ------------------------------------------------------------------------------


def test_locked_versions_are_within_the_bounds_and_have_hashes() -> None:
    text = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", text, flags=re.M)
    names = re.findall(r"^[\w.-]+==", text, flags=re.M)
    assert len(entries) == len(names) > 50
    assert all("--hash=sha256:" in hashes for _, _, hashes in entries)
    locked = {name: version for name, version, _ in entries}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    required = [Requirement(line) for line in lines_of(settings["options"]["install_requires"])]
    assert len(required) > 10
    assert [r for r in required if not r.specifier.contains(locked[r.name])] == []


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def audit():
    """The module .ci/audit.py."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_audit_fails_for_vulnerabilities_alone() -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    found = {"id": "CVE-1", "fix_versions": ["2.1"]}
    lines, status = audit().summarize({"dependencies": [sound, skipped]})
    assert status == 0 and lines == [
        "1 of 2 packages checked, 0 known vulnerabilities; not in the database, or it cannot be "
        "reached: b"
    ]
    lines, status = audit().summarize({"dependencies": [skipped]})
    assert status == 0 and lines == ["nothing was checked: the database cannot be reached"]
    lines, status = audit().summarize({"dependencies": [{**sound, "vulns": [found]}]})
    assert status == 1 and lines[0] == "a 1: CVE-1, fixed in 2.1"


def test_an_audit_that_cannot_run_is_no_failure(monkeypatch, capsys) -> None:
    module = audit()
    monkeypatch.setattr(module, "AUDIT", ("no_such_module",))
    assert module.main("requirements-lock.txt") == 0
    assert "not audited: " in capsys.readouterr().out
