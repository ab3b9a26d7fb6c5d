"""Files of captions: every layout gives the same scores, every error is one line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captioner.cli import main
from captioner.metrics.scores import score
from captioner.metrics.signature import Signature, to_json
from captioner.metrics.statistics import Statistics

CANDIDATES = {"1": "a dog runs fast", "2": 'a "red" cat, asleep', "3": "two cows in a field"}
REFERENCES = {
    "1": ["a dog is running", "the dog runs fast"],
    "2": ["a red cat sleeps, curled up", "an orange cat asleep on a sofa"],
    "3": ["cows in a green field", "two brown cows stand in a field"],
}
METRICS = "bleu,rouge-l,cider-d"
EXPECTED = score(
    list(CANDIDATES.values()),
    list(REFERENCES.values()),
    metrics=METRICS.split(","),
    images=list(CANDIDATES),
)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def captions_jsonl(folder: Path) -> Path:
    rows = [
        {
            "image": image,
            "caption": CANDIDATES[image],
            "log_prob": -1.5,
            "references": REFERENCES[image],
        }
        for image in CANDIDATES
    ]
    return write_jsonl(folder / "captions.jsonl", rows)


def results(folder: Path, images: str = "123") -> Path:
    """In the format of COCO's server: image ids are numbers."""
    rows = [{"image_id": int(image), "caption": CANDIDATES[image]} for image in images]
    return write_json(folder / "results.json", rows)


def annotations(folder: Path, images: str = "321") -> Path:
    rows = [
        {"id": 10 * int(image) + index, "image_id": int(image), "caption": text}
        for image in images
        for index, text in enumerate(REFERENCES[image])
    ]
    return write_json(folder / "annotations.json", {"images": [], "annotations": rows})


def one_table(folder: Path) -> list[Path]:
    head = ["image", "caption", "reference_1", "reference_2", "reference_3", "note"]
    rows = [[image, CANDIDATES[image], *REFERENCES[image], "", "x"] for image in CANDIDATES]
    return [write_csv(folder / "all.csv", [head, *rows])]


def two_tables(folder: Path) -> list[Path]:
    rows = [["Image", "Caption"], *([image, CANDIDATES[image]] for image in CANDIDATES)]
    people = [["image", "caption"], *([i, text] for i in REFERENCES for text in REFERENCES[i])]
    return [write_csv(folder / "said.tsv", rows), write_csv(folder / "people.csv", people)]


def lines_and_references(folder: Path) -> list[Path]:
    rows = [{"image": image, "references": REFERENCES[image]} for image in "231"]
    captions = [{"image": image, "caption": CANDIDATES[image]} for image in CANDIDATES]
    return [write_jsonl(folder / "a.jsonl", captions), write_jsonl(folder / "b.jsonl", rows)]


def objects(folder: Path) -> list[Path]:
    rows = [{"image": i, "caption": CANDIDATES[i], "references": REFERENCES[i]} for i in CANDIDATES]
    return [write_json(folder / "objects.json", rows)]


LAYOUTS = {
    "captions.jsonl": lambda folder: [captions_jsonl(folder)],
    "coco": lambda folder: [results(folder), annotations(folder)],
    "one table": one_table,
    "two tables": two_tables,
    "lines and references": lines_and_references,
    "objects": objects,
}


def scored(capsys: pytest.CaptureFixture, *argv: object) -> dict[str, Any]:
    assert main(["score", *map(str, argv), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_scores(layout: str, tmp_path, capsys) -> None:
    content = scored(capsys, *LAYOUTS[layout](tmp_path), "--metrics", METRICS)
    assert content["scores"] == pytest.approx(EXPECTED.values)
    assert "|refs:2|n:3|" in content["signature"]
    assert content["fields"]["common"]["references"] == EXPECTED.signature.references


def test_a_subset_is_scored_on_request(tmp_path, capsys) -> None:
    files = results(tmp_path, "13"), annotations(tmp_path)
    content = scored(capsys, *files, "--subset", "--metrics", "cider-d")
    expected = score(
        [CANDIDATES["1"], CANDIDATES["3"]], [REFERENCES["1"], REFERENCES["3"]], metrics=["cider-d"]
    ).values
    assert content["scores"] == pytest.approx(expected)
    assert "|n:2|data:annotations|" in content["signature"]


def test_statistics_are_written_for_comparisons(tmp_path, capsys) -> None:
    folder = tmp_path / "left"
    arguments = (captions_jsonl(tmp_path), "--metrics", METRICS)
    content = scored(capsys, *arguments)
    assert main(["score", *map(str, arguments), "--statistics", str(folder)]) == 0
    assert capsys.readouterr().err == f"wrote {folder} (made the folder {folder})\n"
    assert json.loads((folder / "scores.json").read_text(encoding="utf-8")) == content
    statistics = Statistics.load(folder / "statistics.npz")
    assert statistics.images == ("1", "2", "3")
    for name, value in statistics.scores().items():
        assert value == pytest.approx(content["scores"][name])


@pytest.mark.parametrize("old", [False, True])
def test_captions_of_an_evaluation_keep_its_signature(old: bool, tmp_path, capsys) -> None:
    file = captions_jsonl(tmp_path)
    before = scored(capsys, file, "--metrics", "bleu")["signature"]
    assert "|data:captions|images:" in before
    images = before.partition("images:")[2][:8]

    def beside(images: str) -> None:
        """Write the scores of an evaluation of these images; old ones have no fields."""
        known = Signature(decoding="beam3-lp0.7", data="flickr8k", split="dev", images=images)
        content = to_json(replace(known, options={"beam_size": 3}), {})
        if old:
            del content["fields"]
        write_json(tmp_path / "scores.json", content)

    beside(images)
    after = scored(capsys, file, "--metrics", "bleu")
    assert f"|decoding:beam3-lp0.7|data:flickr8k|split:dev|images:{images}|" in after["signature"]
    assert old or after["fields"]["common"]["options"] == {"beam_size": 3}
    beside("0" * 8)
    assert scored(capsys, file, "--metrics", "bleu")["signature"] == before


def test_several_captions_and_training_captions(tmp_path, capsys) -> None:
    row = {"image": "1", "caption": "a b", "references": ["a b c"]}
    row["captions"] = [{"caption": "a b", "log_prob": -1}, {"caption": "c d", "log_prob": -2}]
    file = write_jsonl(tmp_path / "several.jsonl", [row])
    training = write_csv(tmp_path / "training.csv", [["image", "caption"], ["x", "A b!"]])
    scores = scored(capsys, file, "--metrics", "diversity", "--training", training)["scores"]
    assert scores["novelty"] == 0
    assert scores["distinct-1"] == 100
    assert scores["mBLEU-4"] == 0


def test_printed_and_written_formats(tmp_path, capsys) -> None:
    file = str(captions_jsonl(tmp_path))
    assert main(["score", file, "--metrics", "bleu,spice"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"BLEU-1\t{EXPECTED.values['BLEU-1']:.2f}\nBLEU-2\t")
    assert "\nBLEU|nltk:" in out
    assert "\nno spice: needs " in out
    output = tmp_path / "scores.md"
    command = ["score", file, "--metrics", METRICS, "--format", "markdown"]
    assert main([*command, "--output", str(output)]) == 0
    assert capsys.readouterr() == ("", f"wrote {output}\n")
    text = output.read_text(encoding="utf-8")
    assert f"| CIDEr-D | {EXPECTED.values['CIDEr-D']:.2f} |" in text
    assert "- `CIDEr-D|df:references|tok:ptb|" in text


def test_one_image_is_scored_with_a_warning(tmp_path, capsys) -> None:
    row = {"image": "1", "caption": "a dog", "references": ["a dog"]}
    file = str(write_jsonl(tmp_path / "one.jsonl", [row]))
    assert main(["score", file, "--metrics", "bleu,cider-d", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["scores"]["CIDEr-D"] == 0
    assert json.loads(out)["scores"]["BLEU-2"] == pytest.approx(100)
    assert "warning: one image" in err
    assert err.count("\n") == 1


def test_chinese_is_scored_by_character(tmp_path, capsys) -> None:
    row = {"image": "1", "caption": "一只黑狗。", "references": ["一只白狗"]}
    file = write_jsonl(tmp_path / "zh.jsonl", [row])
    content = scored(capsys, file, "--tokenize", "character", "--metrics", "bleu,meteor")
    assert content["scores"]["BLEU-1"] == pytest.approx(75)
    assert "English" in content["missing"]["meteor"]


SAME = {
    "dataset.jsonl": "\n".join(
        json.dumps({"image": i, "captions": REFERENCES[i]}) for i in REFERENCES
    ),
    "dict.json": json.dumps(REFERENCES),
    "ai_challenger.json": json.dumps(
        [{"image_id": i, "caption": REFERENCES[i]} for i in REFERENCES]
    ),
    "metadata.jsonl": "\n".join(
        json.dumps({"file_name": i, "text": text}) for i in REFERENCES for text in REFERENCES[i]
    ),
    "mine.csv": "path,caption_1,caption 2,comment\n"
    + "".join(f'{i},"{first}","{second}",?\n' for i, (first, second) in REFERENCES.items()),
    "karpathy.json": json.dumps(
        {
            "images": [
                {"filename": i, "sentences": [{"raw": text} for text in REFERENCES[i]]}
                for i in REFERENCES
            ]
        }
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_datasets_for_training_are_accepted_as_references(name: str, tmp_path, capsys) -> None:
    (tmp_path / name).write_text(SAME[name], encoding="utf-8")
    captions = write_jsonl(
        tmp_path / "a.jsonl", [{"image": i, "caption": CANDIDATES[i]} for i in CANDIDATES]
    )
    content = scored(capsys, captions, tmp_path / name, "--metrics", METRICS)
    assert content["scores"] == pytest.approx(EXPECTED.values)


@pytest.mark.parametrize("written", ["{}", "{}.jpg", "val2017/{}.jpg"])
def test_coco_images_are_matched_by_id_or_by_name(written: str, tmp_path, capsys) -> None:
    content = json.loads(annotations(tmp_path).read_text())
    content["images"] = [{"id": int(i), "file_name": f"{i}.jpg"} for i in REFERENCES]
    people = write_json(tmp_path / "captions_val2017.json", content)
    rows = [{"image": written.format(i), "caption": CANDIDATES[i]} for i in CANDIDATES]
    captions = write_jsonl(tmp_path / "said.jsonl", rows)
    result = scored(capsys, captions, people, "--metrics", METRICS)
    assert result["scores"] == pytest.approx(EXPECTED.values)
    content["images"].append({"id": 1, "file_name": "other.jpg"})
    write_json(people, content)
    fails(capsys, captions, people, says="id 1 names 1.jpg (images[0]) and other.jpg (images[3])")


def test_chinese_captions_scored_by_words_give_a_warning(tmp_path, capsys) -> None:
    row = {"image": "1", "caption": "一只黑狗在跑", "references": ["一只白狗在跑"]}
    assert main(["score", str(write_jsonl(tmp_path / "zh.jsonl", [row])), "--metrics", "bleu"]) == 0
    err = capsys.readouterr().err
    assert "warning: captions have no spaces between words" in err
    assert "--tokenize character" in err


def test_a_lone_surrogate_is_accepted(tmp_path, capsys) -> None:
    text = '{"image": "1", "caption": "a dog \\ud83d", "references": ["a dog"]}'
    (tmp_path / "half.jsonl").write_text(text)
    content = scored(capsys, tmp_path / "half.jsonl", "--metrics", "bleu")
    assert content["scores"]["BLEU-2"] == pytest.approx(100)


# Mistakes -------------------------------------------------------------------------------------

BAD = {
    "empty.jsonl": ("", "empty file"),
    "blank.csv": (" \n\n", "empty file"),
    "marks.csv": (",,\n", "has no captions"),
    "header.csv": ("image,caption\n", "has no captions"),
    "list.json": ("[]", "has no captions"),
    "broken.jsonl": ('{"image": "1", "caption": "a"}\n{"image": \n', "line 2: not valid JSON"),
    "broken.json": ("[1,", "not valid JSON"),
    "number.json": ("5", "neither a list of objects nor COCO's"),
    "other.json": ('{"images": []}', "no caption; write rows such as"),
    "numbers.json": ("[1, 2]", "entry 1: expected an object"),
    "id.jsonl": ('{"caption": "a", "references": ["a"]}', "line 1: no image id"),
    "null.jsonl": ('{"image": null, "caption": "a"}', "line 1: no image id"),
    "caption.jsonl": ('{"image": "1", "references": ["a"]}', "line 1: no caption"),
    "text.jsonl": (
        '{"image": "1", "caption": 5, "references": ["a"]}',
        "captions must be texts, got 5",
    ),
    "alone.jsonl": ('{"image": "1", "caption": "a"}', "image '1' has no references"),
    "one.jsonl": ('{"image": "1", "caption": "a", "references": "a"}', "give a list"),
    "twice.csv": ("image,caption\n1,a\n1,b\n", "line 3: image '1' has a caption already"),
    "comma.csv": ("image,caption\n1,a dog, asleep\n", "line 2: 3 cells under 2 column names"),
    "quote.csv": ('image,caption\n1,"a' + "\n" * 40, "is a quote never closed?"),
    "columns.csv": ("photo,caption\n1,a\n", "no column 'image' among 'photo', 'caption'"),
    "short.csv": ("image,cap\n1,a\n", "no column 'caption' among 'image', 'cap'"),
    "first.jsonl": (
        '{"image": "1", "caption": "a"\n{"image": "2", "caption": "b"}\n',
        "line 1: not",
    ),
    "both.jsonl": ('{"image": "1", "caption": "a"\n{"image": "2", "caption"\n', "line 1: not"),
    "notes.doc": ("1 a dog", "not a known kind of file; give .jsonl, .json, .csv, .tsv"),
}


def fails(capsys: pytest.CaptureFixture, *argv: object, says: str) -> None:
    assert main(["score", *map(str, argv)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_line(name: str, tmp_path, capsys) -> None:
    content, says = BAD[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    fails(capsys, tmp_path / name, says=says)
    fails(capsys, tmp_path / name, says=name)


def test_files_that_do_not_match_get_one_line(tmp_path, capsys) -> None:
    (tmp_path / "latin.csv").write_bytes("image,caption\n1,caf\u00e9\n".encode("latin-1"))
    fails(
        capsys,
        tmp_path / "latin.csv",
        says="line 2: not valid utf-8; cp1252 reads '1,café'; save it as UTF-8",
    )
    fails(capsys, tmp_path / "gone.csv", says="gone.csv: no such file")
    files = results(tmp_path, "13"), annotations(tmp_path)
    fails(capsys, *files, says="no caption for 1 of 3 images (first '2')")
    fails(capsys, *files, says="--subset")
    unmatched = results(tmp_path), annotations(tmp_path, "12")
    fails(capsys, *unmatched, says="no reference for 1 of 3 images (first '3')")
    fails(capsys, *unmatched, says="captions of other images?")
    file = captions_jsonl(tmp_path)
    fails(capsys, file, "--metrics", "blue", says="did you mean bleu?")
    fails(capsys, file, "--tokenize", "pbt", says="did you mean ptb?")
