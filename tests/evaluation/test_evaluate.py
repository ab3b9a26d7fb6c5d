"""`captioner evaluate`: which data, split and decoding it uses, and where it writes."""

import json
import shutil
from pathlib import Path

import pytest

from captioner.checkpoints import bundle
from captioner.checkpoints.places import data_name
from captioner.cli import main
from captioner.decoding.options import DecodingOptions


def evaluated(capsys, *argv: object) -> dict:
    """The JSON that an evaluation with BLEU prints."""
    more = ("--metrics", "bleu", "--format", "json")
    assert main(["evaluate", *map(str, argv), *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """A checkpoint without its run folder."""
    return Path(shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "copied.ckpt"))


def test_another_data_set_and_a_split_of_it(copied, scenes, tmp_path, capsys) -> None:
    root = shutil.copytree(scenes, tmp_path / "My Data (1) #=数据")
    result = evaluated(capsys, copied, "data=json", f"data.root={root}", "data.split=test")
    folder = Path(result["files"][0]).parent
    assert folder.parent.name == "My Data (1) #=数据-test"
    assert len((folder / "captions.jsonl").read_text("utf-8").splitlines()) == 6
    first = evaluated(capsys, copied, "data.split=test", "data=json", f"data.root={root}")
    assert first["scores"] == result["scores"]
    assert "dev" in evaluated(capsys, copied, "data=json", f"data.root={root}")["signature"]


def test_a_split_is_named_by_flag_or_override(copied, scenes, capsys) -> None:
    data = ["data=json", f"data.root={scenes}"]
    flagged = evaluated(capsys, copied, *data, "--split", "test")
    assert flagged == evaluated(capsys, copied, "--split=test", *data)
    assert flagged == evaluated(capsys, copied, *data, "data.split=test")
    assert "|n:6|" in flagged["signature"] and "|split:test|" in flagged["signature"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(copied), "--split", "test", "data.split=dev"])
    assert "give --split or data.split=, not both" in capsys.readouterr().err


def test_an_experiment_changes_only_groups_of_the_evaluation(copied, scenes, capsys) -> None:
    recipe = ["experiment=flickr8k_nic", f"data.root={scenes}", "data.format=shapes"]
    result = evaluated(capsys, copied, *recipe, "data.captions=null")
    assert "|decoding:beam3-lp0.7|" in result["signature"]  # of the recipe
    options = result["fields"]["common"]["options"]
    assert (options["beam_size"], options["length_penalty"]) == (3, 0.7)
    assert options.keys() == DecodingOptions.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["runs/lr=1_typo"], "runs/lr=1_typo: no such run folder or checkpoint"),
        (["{run}", "runs/lr=1_typo"], "runs/lr=1_typo: no such run folder or checkpoint"),
        (["{run}", "seed=3"], "seed is not an option; there are data, loader, decoding"),
        (["{run}", "decoder=up_down"], "decoder is not an option"),
        (["{run}", "data.splits=test"], "did you mean data.split"),
        (["{run}", "decoding.beam_size=1,3"], "several values are for train -m"),
        (["{run}", "experiment=dmeo"], "did you mean demo"),
    ],
)
def test_wrong_words_get_one_line(run, argv: list[str], says: str, capsys) -> None:
    assert main(["evaluate", *(word.format(run=run) for word in argv)]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_note_lists_what_an_experiment_changes(run, scenes, tmp_path, capsys) -> None:
    root, mine = shutil.copytree(run, tmp_path / "run"), tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    for name, text in {
        "all": "decoder: {hidden_size: 9}\ndecoding: {beam_size: 3}",
        "none": "seed: 3",
    }.items():
        (mine / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    for name, changes in (("all", "decoding.beam_size=3"), ("none", "nothing")):
        argv = [str(root), f"experiment={name}", "--config-dir", str(mine.parent)]
        assert main(["evaluate", *argv, "--metrics", "bleu"]) == 0
        assert capsys.readouterr().err.startswith(
            f"captioner: note: experiment={name} changes {changes} here; an evaluation takes only "
        )


def test_other_captions_of_the_same_images_are_another_evaluation(
    copied, scenes, tmp_path, capsys
) -> None:
    root = shutil.copytree(scenes, tmp_path / "toys")
    rows = [json.loads(line) for line in (root / "captions.jsonl").read_text("utf-8").splitlines()]
    changed = [{**row, "captions": ["another text"]} for row in rows]
    (root / "others.json").write_text(json.dumps(changed), "utf-8")
    data = ["data=json", f"data.root={root}"]
    results = {
        folder: evaluated(capsys, copied, *data, *more)
        for folder, more in {
            "toys-dev": ["data.captions=null"],
            "toys-others.json-dev": ["data.captions=others.json"],
            "toys-captions.jsonl-dev": [f"data.captions={root}/captions.jsonl"],
        }.items()
    }
    for folder, result in results.items():
        scores = Path(result["files"][0])
        assert scores.parent.parent.name == folder
        assert result["fields"]["common"]["data"] == folder.removesuffix("-dev")
        assert json.loads(scores.read_text("utf-8"))["signature"] == result["signature"]
    hashes = [content["fields"]["common"]["references"] for content in results.values()]
    assert hashes[0] == hashes[2] != hashes[1]
    files = [str(Path(content["files"][0]).parent) for content in results.values()]
    assert main(["compare", files[0], files[2], "--resamples", "1000"]) == 0
    capsys.readouterr()
    assert main(["compare", files[0], files[1], "--resamples", "1000"]) == 1
    assert f"references {hashes[0]} and {hashes[1]}" in capsys.readouterr().err


def test_files_and_their_evaluation_have_the_same_reference_hash(
    copied, scenes, tmp_path, capsys
) -> None:
    root = shutil.copytree(scenes, tmp_path / "toys")
    result = evaluated(capsys, copied, "data=json", f"data.root={root}")
    own = result["fields"]["common"]["references"]
    captions = Path(result["files"][1])
    for files in ([captions], [captions, root / "captions.jsonl"]):
        argv = [*map(str, files), "--format", "json", "--metrics", "bleu"]
        assert main(["score", *argv, *(["--subset"] if len(files) > 1 else [])]) == 0
        assert json.loads(capsys.readouterr().out)["fields"]["common"]["references"] == own


@pytest.mark.parametrize(
    ("captions", "name"),
    [
        (None, "flickr8k"),
        ("Flickr8k-CN.token.txt", "flickr8k-Flickr8k-CN.token"),
        ("/data/flickr8k/描述 #1.csv", "flickr8k-描述 #1.csv"),
        (["a.json", "b.json"], "flickr8k-a.json+b.json"),
        ("de/captions.txt", "flickr8k-captions-"),
        ("en/captions.txt", "flickr8k-captions-"),
        ("/elsewhere/captions.txt", "flickr8k-captions-"),
        ("captions_*.json", "flickr8k-captions__.json-"),
        ([f"part{n}.json" for n in range(30)], "flickr8k-part0.json+"),
    ],
)
def test_data_are_named_by_root_and_caption_file(captions, name: str) -> None:
    dataset = data_name({"root": "/data/flickr8k", "captions": captions})
    assert dataset.startswith(name) if name[-1] in "-+" else dataset == name
    assert len(dataset) < 80 and not set(dataset) & set("/*?\\")
    files = ["de/captions.txt", "captions_*.json", None, "captions.json"]
    assert dataset not in [
        data_name({"root": "/data/flickr8k", "captions": file})
        for file in files
        if file != captions
    ]


def test_reports_of_a_bundled_model_use_the_evaluated_dataset(
    run, scenes, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "HOME", tmp_path / "bundled")
    assert main(["models", "export", str(run), "bundled/tiny"]) == 0
    capsys.readouterr()
    copied = shutil.copytree(scenes, tmp_path / "other")
    for root in (scenes, copied):
        evaluated(capsys, "tiny", f"data.root={root}")
    shutil.rmtree(copied / "images")
    for root, pictures in ((scenes, True), (copied, False)):
        folder = tmp_path / "runs" / "bundled-tiny" / "evaluation" / f"{root.name}-dev" / "greedy"
        assert main(["report", str(folder)]) == 0
        assert ("data:image/" in (folder / "report.html").read_text("utf-8")) is pictures
