"""Weights kept in the cache: equal, whole or made again, and never those of changed networks."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captioner.models.encoders.kept import FOLDER, kept, version_of
from captioner.models.encoders.libraries import build_encoder
from captioner.models.snapshot import Snapshot


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 4, generator=generator)
    return {
        "conv.weight": weight.contiguous(memory_format=torch.channels_last),
        "conv.bias": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
    }


def refuse() -> dict[str, Tensor]:
    raise AssertionError("it is kept already")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_tensors_are_made_once() -> None:
    made = kept("some", some_tensors)
    again = kept("some", refuse)
    assert made.memory is not None and again.memory is not None
    assert equal(made.tensors, some_tensors()) and equal(again.tensors, some_tensors())
    assert again.tensors["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    assert again.holds(made.tensors.values()) is False
    again.release()
    assert equal(again.tensors, some_tensors())


def test_a_change_of_a_tensor_does_not_change_the_file() -> None:
    kept("some", some_tensors).tensors["conv.weight"].zero_()
    assert equal(kept("some", refuse).tensors, some_tensors())


KNOWS_PAGES = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="the system tells nothing of pages"
)


def large() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(50_000, generator=generator) for name in "ab"}  # 49 pages each


@KNOWS_PAGES
@pytest.mark.reliability("shared objects")
def test_a_written_value_is_noticed_wherever_it_is_and_however_it_is_written() -> None:
    def one(values: Tensor) -> None:
        values.data[-1] = 1.0

    def through_numpy(values: Tensor) -> None:
        values.numpy()[len(values) // 2] += 1.0

    def the_same_value(values: Tensor) -> None:
        values[0] = float(values[0])

    def from_a_file(values: Tensor) -> None:
        with open("/dev/zero", "rb", buffering=0) as file:
            file.readinto(values.numpy()[7:9])  # the system writes it

    for write in (one, through_numpy, the_same_value, from_a_file):
        for name in "ab":
            found = kept("large", large)
            assert found.unwritten()
            assert equal(found.tensors, large()) and found.unwritten()  # reading is no change
            found.release()
            assert found.unwritten()
            write(found.tensors[name])
            assert not found.unwritten()


@KNOWS_PAGES
def test_a_value_that_another_process_writes_is_its_own() -> None:
    found = kept("large", large)
    child = os.fork()
    if not child:
        found.tensors["a"][3] = 0.0
        os._exit(found.unwritten())
    assert os.waitpid(child, 0)[1] == 0
    assert found.unwritten() and equal(found.tensors, large())


@pytest.mark.parametrize("pages", ["missing", b"", b"short", "folder"])
def test_where_the_system_tells_nothing_of_pages_it_is_not_known(
    pages: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, path = kept("large", large), tmp_path / "pages"
    if pages == "folder":
        path.mkdir()
    elif isinstance(pages, bytes):
        path.write_bytes(pages)
    monkeypatch.setattr("captioner.models.encoders.kept._PAGES", path)
    assert not found.unwritten()


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("damage", ["bit", "end", "header", "length", "empty", "dtype"])
def test_a_damaged_file_is_made_again(home: Path, damage: str) -> None:
    kept("some", some_tensors)
    path = home / FOLDER / "some.safetensors"
    data = path.read_bytes()
    data = {
        "bit": data[:-3] + bytes([data[-3] ^ 4]) + data[-2:],
        "end": data[:-8],
        "header": data[:8] + b"[" + data[9:],
        "length": b"\xff" * 8 + data[8:],
        "empty": b"",
        "dtype": data.replace(b'"I64"', b'"U64"'),
    }[damage]
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="kept already"):
        kept("some", refuse)
    assert equal(kept("some", some_tensors).tensors, some_tensors())
    assert equal(kept("some", refuse).tensors, some_tensors())


@pytest.mark.reliability("damaged files")
def test_a_file_under_the_name_of_another_one_is_made_again(home: Path) -> None:
    kept("some", some_tensors)
    kept("large", large)
    (home / FOLDER / "large.safetensors").replace(home / FOLDER / "some.safetensors")
    assert equal(kept("some", some_tensors).tensors, some_tensors())
    assert equal(kept("some", refuse).tensors, some_tensors())


@pytest.mark.reliability("files decide nothing")
@pytest.mark.parametrize("target", ["file", "nothing", "folder", "pipe"])
def test_nothing_is_written_through_a_link_or_read_from_a_pipe(
    home: Path, tmp_path: Path, target: str
) -> None:
    (home / FOLDER).mkdir(parents=True)
    path, thesis = home / FOLDER / "some.safetensors", tmp_path / "thesis.txt"
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(thesis)
    if target == "file":
        thesis.write_text("mine")
    elif target == "folder":
        thesis.mkdir()
    for _ in range(2):
        found = kept("some", some_tensors)
        assert found.memory is None and equal(found.tensors, some_tensors())
    assert target == "pipe" or path.is_symlink()
    assert [path] == list((home / FOLDER).iterdir())
    assert thesis.exists() is (target in ("file", "folder"))
    assert target != "file" or thesis.read_text() == "mine"


def test_a_link_to_a_file_that_is_whole_is_read(home: Path, tmp_path: Path) -> None:
    kept("some", some_tensors)
    path = home / FOLDER / "some.safetensors"
    path.replace(tmp_path / "shared")
    path.symlink_to(tmp_path / "shared")
    assert equal(kept("some", refuse).tensors, some_tensors())


def test_without_a_folder_for_the_cache_nothing_is_kept(home: Path) -> None:
    home.write_text("a file")
    found = kept("some", some_tensors)
    assert found.memory is None and equal(found.tensors, some_tensors())
    assert not found.unwritten()


def test_a_replaced_file_has_another_version(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    before = version_of(file)
    assert version_of(file) == before
    file.write_bytes(b"three")
    assert version_of(file) != before


# Encoders -----------------------------------------------------------------------------------------


def loaded():
    encoder = build_encoder(
        library="bundled", network="efficientnet_lite0", image_size=64, initialise=False
    )
    encoder.fill()
    return encoder


def files(home: Path) -> list[str]:
    return sorted(path.name[:26] for path in (home / FOLDER).iterdir())


@pytest.mark.reliability("shared objects")
def test_a_copy_with_kept_weights_computes_the_same_features(home: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    first, second, unfolded = loaded(), loaded(), loaded()
    unfolded.trainable = True  # no quick copy
    results = []
    for encoder in (first, second):
        encoder.make_ready()
        results.append(encoder(images))
    assert len(files(home)) == 2 and "efficientnet_lite0-float32" in files(home)
    assert torch.equal(results[0].pooled, results[1].pooled)
    assert torch.equal(results[0].grid, results[1].grid)
    with torch.no_grad():
        assert torch.allclose(results[0].pooled, unfolded(images).pooled, atol=1e-4)
    reference = build_encoder(library="bundled", network="efficientnet_lite0", image_size=64)
    assert equal(dict(second.state_dict()), dict(reference.state_dict()))  # also after `release`


@pytest.mark.reliability("shared objects")
def test_changes_of_the_weights_are_seen_and_not_kept(home: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    plain, changed = loaded(), loaded()
    changed.backbone.conv_stem.weight.data[0] = 0.0  # torch does not count this
    for encoder in (plain, changed):
        encoder.make_ready()
    assert len(files(home)) == 2
    assert not torch.equal(plain(images).pooled, changed(images).pooled)
    assert not changed.backbone.conv_stem.weight[0].any()
    again = loaded()
    again.make_ready()
    again.backbone.conv_stem.weight.data[0] = 0.0
    again.make_ready()
    assert torch.equal(again(images).pooled, changed(images).pooled)


@pytest.mark.parametrize("pages", [True, False])
def test_weights_are_compared_only_if_they_may_have_changed(
    pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pages:
        monkeypatch.setattr("captioner.models.encoders.kept._PAGES", Path("missing"))
    loaded().make_ready()
    encoder, compared = loaded(), 0
    encoder.make_ready()
    original = Snapshot.same

    def same(self: Snapshot, modules: list) -> bool:
        nonlocal compared
        compared += 1
        return original(self, modules)

    monkeypatch.setattr(Snapshot, "same", same)
    quick = encoder._quick
    encoder.make_ready()
    known = pages and os.access("/proc/self/pagemap", os.R_OK)
    assert compared == (not known) and encoder._quick is quick
    encoder.backbone.blocks[3][0].conv_pw.weight.data[0] += 0.0  # written, with the same value
    encoder.make_ready()
    assert compared == 1 + (not known) and encoder._quick is quick
    encoder.backbone.blocks[3][0].conv_pw.weight.data[0] += 1.0
    encoder.make_ready()
    assert encoder._quick is not quick


def test_changes_of_weights_that_are_not_of_a_file_are_seen(home: Path) -> None:
    encoder = build_encoder(library="bundled", network="efficientnet_lite0", image_size=64)
    copied = copy.deepcopy(loaded())
    for each in (encoder, copied):
        each.make_ready()
        each.make_ready()
        before = each(images := torch.rand(1, 3, 64, 64)).pooled
        each.backbone.conv_stem.weight.data[0] = 0.0
        each.make_ready()
        assert not torch.equal(each(images).pooled, before)


def signs(weight: Tensor) -> None:
    weight.data[1::2] *= -1


def doubled(weight: Tensor) -> None:
    with torch.no_grad():
        weight[1::2] *= 2


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize("change", [signs, doubled])
def test_a_change_before_the_first_use_is_neither_lost_nor_confused(change, home: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    plain = loaded()
    plain.make_ready()  # keeps the folded weights
    for name in ("bn1.weight", "bn1.bias", "blocks.0.0.bn1.weight", "conv_stem.weight"):
        encoder = loaded()
        weight = encoder.backbone.get_parameter(name)
        change(weight)
        changed = weight.clone()
        encoder.make_ready()
        assert torch.equal(weight, changed)
        assert not torch.equal(encoder(images).pooled, plain(images).pooled)


@pytest.mark.reliability("shared objects")
def test_hooks_are_called_as_long_as_they_are_registered(home: Path) -> None:
    images, calls = torch.rand(1, 3, 64, 64), []
    encoder = loaded()
    before = encoder(images).pooled
    for _ in range(2):
        encoder.make_ready()
        hook = encoder.backbone.conv_head.register_forward_hook(
            lambda module, given, result: calls.append(1) or 2 * result
        )
        encoder.make_ready()
        doubled = encoder(images).pooled
        assert len(calls) == 1 and not torch.allclose(doubled, before, rtol=0.1)
        hook.remove()
        calls.clear()
        assert torch.equal(encoder(images).pooled, before) and not calls
