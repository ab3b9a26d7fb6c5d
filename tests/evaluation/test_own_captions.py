"""Novelty is relative to the training captions of the model, whatever data are scored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.evaluations import evaluation, system
from support.warm_starts import inherited

from captioner.api import Captioner
from captioner.checkpoints import bundle, checkpoint
from captioner.checkpoints.export import export_bundle
from captioner.cli import main
from captioner.config import compose
from captioner.data.read import read_records
from captioner.evaluation.evaluate import evaluate
from captioner.metrics.novelty import CaptionHashes
from captioner.metrics.tokenize import ptb_words
from captioner.report.report import report
from captioner.training.train import train

CAPTIONS = st.lists(st.lists(st.sampled_from(["a", "dog", "ab", "b", "狗"]), max_size=3))


@pytest.mark.reliability("properties")
@given(CAPTIONS, CAPTIONS)
def test_hashes_behave_like_a_set_of_captions(known: list, queries: list) -> None:
    hashes, captions = CaptionHashes.of(known), {tuple(words) for words in known}
    assert len(hashes) == len(captions)
    assert [words in hashes for words in queries] == [tuple(words) in captions for words in queries]
    both = CaptionHashes.union([hashes, CaptionHashes.of(queries)])
    assert both is not None and len(both) == len(captions | {tuple(words) for words in queries})


def test_a_union_with_an_unknown_set_is_unknown() -> None:
    hashes = CaptionHashes.of([["a"]])
    assert CaptionHashes.union([hashes, None]) is CaptionHashes.union([]) is None


def test_digests_differ_by_content_but_not_by_order() -> None:
    first = CaptionHashes.of([["a", "b"], ["c"]])
    assert first.digest == CaptionHashes.of([["c"], ["a", "b"], ["c"]]).digest
    assert first.digest != CaptionHashes.of([["a", "b"], ["d"]]).digest


# Of models ------------------------------------------------------------------------------------


def captions_of(root: Path) -> set[tuple[str, ...]]:
    records = read_records(format="shapes", root=str(root)).split("train")
    return {tuple(ptb_words(text)) for record in records for text in record.captions}


@pytest.fixture(scope="module")
def other(run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The data group of a second dataset, whose training captions are the generated captions."""
    root = tmp_path_factory.mktemp("other") / "set"
    root.mkdir()
    texts = [
        caption.text for caption in Captioner.load(run, device="cpu").caption(images_of(scenes))
    ]
    rows = [
        {"image": str(image), "captions": [text], "split": split}
        for split in ("train", "dev")
        for image, text in zip(images_of(scenes), texts)
    ]
    for number, row in enumerate(rows):  # one picture in each split, with its own name
        copy = root / f"{number}.png"
        shutil.copy(row["image"], copy)
        row["image"] = copy.name
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"format": "json", "root": str(root)}


def images_of(scenes: Path) -> list[Path]:
    return sorted(scenes.glob("images/dev_*.png"))


def evaluated(path: Path, data: dict | None = None):
    captioner = Captioner.load(path, device="cpu")
    groups = {name: captioner.config[name] for name in ("data", "decoding", "loader")}
    if data is not None:
        base = compose(["data=json"])["data"]
        groups["data"] = {**base, **{key: data[key] for key in data if key in base}}
    evaluation = evaluate(captioner, **groups, split="dev", metrics=["diversity"], progress=False)
    return evaluation, evaluation.scores


def novelty(evaluation, known: set[tuple[str, ...]]) -> float:
    """By the definition."""
    words = [tuple(ptb_words(caption.text)) for caption in evaluation.captions]
    return 100 * sum(caption not in known for caption in words) / len(words)


def test_novelty_on_other_data_uses_the_training_captions(run, scenes, other) -> None:
    result, scores = evaluated(run, other)
    own = captions_of(scenes)
    assert scores.values["novelty"] == pytest.approx(novelty(result, own))
    assert (
        scores.values["novelty"] > 0
    )  # relative to the captions of the other dataset it would be 0
    digest = CaptionHashes.of(own).digest
    for result in (scores, evaluated(run)[1]):
        assert result.signatures["novelty"].parts["training"] == f"{len(own)}-{digest}"


def forgetful(run: Path, folder: Path) -> Path:
    """The best checkpoint, as written by an older version."""
    content = torch.load(checkpoint.find(run), weights_only=True)
    del content["captioner"]["training"]
    checkpoint.write(content, folder / "old.ckpt")
    return folder / "old.ckpt"


@pytest.mark.reliability("versions")
def test_an_older_checkpoint_knows_only_its_own_data(run, scenes, other, tmp_path) -> None:
    old = forgetful(run, tmp_path)
    evaluation, scores = evaluated(old)
    assert scores.values["novelty"] == pytest.approx(novelty(evaluation, captions_of(scenes)))
    scores = evaluated(old, other)[1]
    assert "novelty" not in scores.values
    assert scores.missing["novelty"] == (
        "unknown: this checkpoint has no hashes of its training captions"
    )


def test_captions_of_the_run_before_a_warm_start_are_included(run, other, scenes, tmp_path) -> None:
    def started(start: Path, name: str) -> CaptionHashes | None:
        overrides = [f"resume_weights={start}", "data=json", f"data.root={other['root']}"]
        overrides += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "logger.tensorboard=false"]
        overrides += ["trainer.limit_train_batches=1"]
        return checkpoint.read(train(inherited(overrides), tmp_path / name).best).training

    both = started(run, "warm")
    assert both is not None
    assert all(words in both for words in captions_of(scenes))
    assert len(both) > len(captions_of(scenes))
    assert started(forgetful(run, tmp_path), "unknown") is None


def test_bundles_and_averages_contain_the_hashes(run, tmp_path) -> None:
    own = checkpoint.read(run).training
    assert own is not None
    folder = export_bundle(run, tmp_path / "tiny")
    bundled = checkpoint.read(folder).training
    assert bundled is not None and bundled.digest == own.digest
    checkpoint.average([checkpoint.find(run)] * 2, tmp_path / "mean.ckpt")
    mean = checkpoint.read(tmp_path / "mean.ckpt").training
    assert mean is not None and mean.digest == own.digest
    (folder / bundle.TRAINING).write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"training\.npy: damaged"):
        checkpoint.read(folder)
    numpy.save(folder / bundle.TRAINING, numpy.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"training\.npy: damaged"):
        checkpoint.read(folder)
    (folder / bundle.TRAINING).unlink()
    assert checkpoint.read(folder).training is None


def test_the_bundled_model_knows_its_30000_captions() -> None:
    known = bundle.read_training(bundle.default(), {})
    assert known is not None and len(known) == 29_789
    assert (bundle.default() / bundle.TRAINING).stat().st_size < 300_000


def test_a_second_dataset_keeps_the_configuration_and_shows_its_pictures(
    run, other, tmp_path, monkeypatch, capsys
) -> None:
    """A bundle is evaluated on two datasets; each report shows its own dataset."""
    monkeypatch.setattr(bundle, "HOME", tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    export_bundle(run, tmp_path / "home" / "tiny")
    texts = []
    for data in ([f"data.root={checkpoint.read(run).config['data']['root']}"], other):
        overrides = data if isinstance(data, list) else ["data=json", f"data.root={data['root']}"]
        assert main(["evaluate", "tiny", *overrides, "--metrics", "diversity,rouge-l"]) == 0
        texts.append(Path("runs/bundled-tiny/config.yaml").read_text())
    assert texts[0] == texts[1]
    [folder] = Path("runs/bundled-tiny/evaluation").glob("set-dev/*")
    page = report(folder).read_text(encoding="utf-8")
    assert "data:image/jpeg" in page and "captions that are new" in page
    [folder] = Path("runs/bundled-tiny/evaluation").glob("shapes-dev/*")
    page = report(folder).read_text(encoding="utf-8")
    assert "nearest training caption" in page and "There is no nearest" not in page


def test_models_of_other_training_captions_are_compared_with_a_warning(tmp_path, capsys) -> None:
    for name, known in (("a", "24-aa"), ("b", "40-bb")):
        own = {"distinct-2": {"training": known}}
        evaluation(tmp_path / name, system(len(name)), own=own)
    paths = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *paths, "--resamples", "1000"]) == 0
    assert "training differs (24-aa: a; 40-bb: b)" in " ".join(capsys.readouterr().out.split())


def test_captioners_of_several_checkpoints_know_all_their_captions(run, tmp_path) -> None:
    loaded = checkpoint.read(run)
    content = torch.load(loaded.path, weights_only=True)
    more = replace(loaded, training=CaptionHashes.of([["one", "more"]])).training
    assert more is not None
    content["captioner"]["training"] = torch.from_numpy(more.hashes.view("i8"))
    checkpoint.write(content, tmp_path / "other.ckpt")
    known = Captioner.load([run, tmp_path / "other.ckpt"], device="cpu").training
    assert known is not None and loaded.training is not None
    assert len(known) == len(loaded.training) + 1
    assert Captioner.load([run, forgetful(run, tmp_path)], device="cpu").training is None
