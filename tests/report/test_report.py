"""The report: a self-contained page that escapes all data and names what is missing."""

import base64
import hashlib
import io
import json
import re
import shutil
import unicodedata
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from captioner.api import Captioner
from captioner.cli import main
from captioner.evaluation.evaluate import evaluate
from captioner.metrics.significance import bootstrap, interval
from captioner.metrics.statistics import Statistics
from captioner.metrics.table import METRICS
from captioner.metrics.tokenize import characters
from captioner.report.errors import BUCKETS
from captioner.report.novelty import TrainingCaptions
from captioner.report.page import marked
from captioner.report.report import _nearest, report
from captioner.report.view import detect_language, following_spaces
from captioner.runs import STATISTICS

NASTY = "<script>alert(1)</script> & \"a\" 'dog'"


class Page(HTMLParser):
    """A parsed page: elements with attributes, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with an evaluation of its dev split; tests must not change it."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("report") / "tiny")
    captioner = Captioner.load(copy, device="cpu")
    groups = {name: captioner.config[name] for name in ("data", "decoding", "loader")}
    fast = [name for name in METRICS if name != "meteor"]  # METEOR starts java
    result = evaluate(captioner, **groups, split="dev", metrics=fast, progress=False)
    result.write(copy / "evaluation" / "shapes-dev" / "greedy")
    return copy


@pytest.fixture
def folder(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return shutil.copytree(evaluated, tmp_path / "tiny")


def signed(evaluation: Path, **fields: object) -> None:
    """Change fields of the signature of an evaluation."""
    path = evaluation / "scores.json"
    content = json.loads(path.read_text())
    content["fields"]["common"] |= fields
    path.write_text(json.dumps(content))


def rewrite(folder: Path, **changes: object) -> None:
    """Change the first line of the captions."""
    path = folder / "evaluation" / "shapes-dev" / "greedy" / "captions.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), **changes}, ensure_ascii=False) + "\n" + rest)


def test_the_page_shows_captions_and_references(evaluated: Path, tmp_path: Path) -> None:
    path = report(evaluated, images=3, output=tmp_path / "page.html")
    page = Page(path)
    lines = (evaluated / "evaluation" / "shapes-dev" / "greedy" / "captions.jsonl").read_text()
    for row in map(json.loads, lines.splitlines()):
        assert row["caption"] in page.text
        assert row["image"] in page.text
    for words in ("BLEU-4", "CIDEr-D", "dev loss with the wrong image", "Wrong color", "greedy"):
        assert words in page.text
    assert len(page.all("polyline")) >= 4
    sources = {image["src"] for image in page.all("img")}
    assert sources
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
        assert max(Image.open(io.BytesIO(data)).size) <= 320


def test_scores_have_their_bootstrap_intervals(evaluated: Path, tmp_path: Path) -> None:
    path = report(evaluated, output=tmp_path / "page.html")
    folder = evaluated / "evaluation" / "shapes-dev" / "greedy"
    low, high = interval(bootstrap([[Statistics.load(folder / STATISTICS)]])["CIDEr-D"][0])
    score = json.loads((folder / "scores.json").read_text())["scores"]["CIDEr-D"]
    assert low < score < high
    cells = [
        f"<td{kind}>{text}</td>"
        for kind, text in ((' class="number"', f"{score:.2f}"), ("", f"{low:.2f} to {high:.2f}"))
    ]
    assert "".join(cells) in path.read_text(encoding="utf-8")


def test_the_page_is_self_contained(evaluated: Path, tmp_path: Path) -> None:
    page = Page(report(evaluated, output=tmp_path / "page.html"))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("srcset", "action", "style") and not name.startswith("on")
            if name in ("src", "href", "data", "poster"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:60])
    assert not page.all("link") and not page.all("iframe")
    for own in re.findall(r"<(?:style|script)>(.*?)</", page.source, re.DOTALL):
        assert not re.search(r"@import|url\(|//[a-z]|fetch|XMLHttp", own)
    assert page.all("meta")[2]["content"] == "width=device-width, initial-scale=1"


def test_the_policy_allows_only_the_pages_own_style_and_script(
    evaluated: Path, tmp_path: Path
) -> None:
    page = Page(report(evaluated, output=tmp_path / "page.html"))
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_is_accessible(evaluated: Path, tmp_path: Path) -> None:
    page = Page(report(evaluated, output=tmp_path / "page.html"))
    assert page.all("html")[0]["lang"] == page.all("body")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert len(page.all("h1")) == 1
    assert len(page.all("details")) == len(page.all("summary")) > 10
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {link["href"][1:] for link in page.all("a")} <= set(names)
    assert len(set(names)) == len(names)
    assert {fold["id"] for fold in page.all("details") if "id" in fold} == set(BUCKETS)
    assert page.source.count("<figcaption>") == page.source.count("<figure>") > 0
    assert page.all("input")[0]["aria-label"]


@pytest.mark.reliability("files decide nothing")
def test_captions_are_escaped(folder: Path) -> None:
    rewrite(
        folder,
        caption=NASTY,
        references=[NASTY, "a\u2028line", "a dog</title></li><img src=x onerror=1>"],
    )
    page = Page(report(folder, images=100))
    assert len(page.all("script")) == 1
    assert NASTY in page.text
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert all(image["src"].startswith("data:image/jpeg") for image in page.all("img"))


@pytest.mark.reliability("files decide nothing")
def test_names_are_escaped(folder: Path) -> None:
    path = folder / "evaluation" / "shapes-dev" / "greedy" / "scores.json"
    content = json.loads(path.read_text())
    content["missing"] = {"<b>SPICE": "<i>no java"}
    content["fields"]["common"]["data"] = "<u>"
    path.write_text(json.dumps(content))
    (folder / "config.yaml").write_text("data: {root: <s>}\nother: <s>\n")
    page = Page(report(folder))
    assert not {"b", "i", "u", "s"} & {tag for tag, _ in page.elements}
    assert "<b>SPICE" in page.text and "<s>" in page.text


def test_common_sequences_are_marked_by_length() -> None:
    html = marked(["two", "<dogs>", "run"], [["two", "<dogs>"], ["run"]])
    assert html == '<mark class="m2">two &lt;dogs&gt;</mark> <mark class="m1">run</mark>'
    assert marked(["狗", "跑"], [["猫"]], gaps=["", ""]) == "狗跑"


@pytest.mark.parametrize(
    "text", ["एक कुत्ता दौड़ रहा है", "两只狗在跑", "t恤 和 狗", "สุนัข กำลัง วิ่ง", "é e\u0301 n", ""]
)
def test_characters_keep_the_spaces_of_their_text(text: str) -> None:
    words = characters(text)
    assert marked(words, [], gaps=following_spaces(text, words)) == unicodedata.normalize(
        "NFC", text
    )


# What is missing ------------------------------------------------------------------------------


def test_without_data_the_page_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone: no such folder; give the root"):
        report(folder, data_root=str(tmp_path / "gone"))
    page = Page(report(folder, data_root=str(tmp_path)))
    assert not page.all("img")
    assert page.text.count("No pictures, no training captions:") == 1  # the reason is printed once
    assert "There is no nearest training caption" in page.text
    assert "captions that are new" in page.text  # the checkpoint knows its training captions
    assert not (
        tmp_path / "captions.jsonl"
    ).exists()  # the built-in dataset is not drawn for a report


def test_a_caption_without_common_pairs_has_no_nearest_training_caption() -> None:
    training = TrainingCaptions([["a", "dog"]])
    view = SimpleNamespace(training=training, space=SimpleNamespace(join=" ".join))
    assert _nearest(view, ["birds"]) is None
    assert _nearest(view, ["a", "cat"]) == ("0.33", "a dog")


def test_training_captions_are_used_without_pictures(
    folder: Path, scenes: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(scenes, tmp_path / "shapes")
    for path in (root / "images").glob("dev_*.png"):
        path.unlink()
    page = Page(report(folder, data_root=str(root)))
    assert not page.all("img")
    assert "none of the images (caption of an absent image" in page.text
    assert "nearest training caption" in page.text


def test_without_run_log_or_scores_of_images_the_rest_is_shown(
    folder: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(folder / "evaluation" / "shapes-dev" / "greedy", alone)
    statistics = Statistics.load(alone / STATISTICS)
    Statistics(statistics.images, {"bleu": statistics.rows["bleu"]}).save(alone / STATISTICS)
    page = Page(report(alone))
    assert "no CSV log" in page.text
    assert "There is no ranking" in page.text
    assert "No configuration" in page.text
    assert "Wrong count" in page.text


@pytest.mark.reliability("damaged files")
def test_a_broken_picture_is_left_out(folder: Path, scenes: Path, tmp_path: Path) -> None:
    root = shutil.copytree(scenes, tmp_path / "shapes")
    for path in (root / "images").glob("dev_0000[0-6].png"):
        path.write_bytes(b"no image")
    sources = {image["src"] for image in Page(report(folder, data_root=str(root))).all("img")}
    assert len(sources) == 1


def test_a_caption_is_truncated_at_the_length_that_its_decoding_allowed(folder: Path) -> None:
    path = folder / "evaluation" / "shapes-dev" / "greedy"
    says = "words, the most that decoding.max_length allows"
    options = json.loads((path / "scores.json").read_text())["fields"]["common"]["options"]
    signed(path, options={**options, "max_length": 29})
    rewrite(folder, caption=" ".join(f"word{n}" for n in range(29)))
    assert f"29 {says}" in Page(report(folder)).text
    signed(path, options=options)
    assert says not in Page(report(folder)).text
    content = json.loads((path / "scores.json").read_text())
    del content["fields"]  # an older evaluation, whose label contains it
    content["signature"] = content["signature"].replace("decoding:greedy", "decoding:greedy-max29")
    (path / "scores.json").write_text(json.dumps(content))
    assert f"29 {says}" in Page(report(folder)).text


def test_a_chinese_page_judges_what_it_can(folder: Path) -> None:
    path = folder / "evaluation" / "shapes-dev" / "greedy"
    signed(path, tokenization="character")
    rewrite(folder, caption="穿红衣服的男人", references=["穿蓝衣服的男人", "蓝色上衣的男人"])
    page = Page(report(folder, images=100))
    assert "says 红, references 蓝" in page.text


@pytest.mark.parametrize(
    "text, language",
    [
        ("穿红衣服的男人", "zh"),
        ("犬が走っている", "ja"),
        ("개가 달린다", "ko"),
        ("एक कुत्ता दौड़ रहा है", "hi"),
        ("สุนัขกำลังวิ่ง", "th"),
        ("a dog runs", None),
        ("ein Hund, 2 Bälle", None),
        ("12 !", None),
        ("", None),
    ],
)
def test_the_language_is_that_of_the_letters(text: str, language: str | None) -> None:
    assert detect_language(text) == language


def test_the_language_of_captions_and_page_is_declared(folder: Path) -> None:
    path = folder / "evaluation" / "shapes-dev" / "greedy"
    signed(path, tokenization="character")
    lines = [json.loads(line) for line in (path / "captions.jsonl").read_text().splitlines()]
    rows = [{**line, "caption": "两只狗", "references": ["三只狗 在跑"]} for line in lines]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (path / "captions.jsonl").write_text(text)
    page = Page(report(folder))
    assert page.all("html")[0]["lang"] == "zh"
    assert page.all("body")[0]["lang"] == "en"  # the text of the page itself
    assert {element["lang"] for element in page.all("p") if "lang" in element} == {"zh"}
    assert len([element for element in page.all("p") if element.get("class") == "caption"]) > 0


# Layout ---------------------------------------------------------------------------------------


def test_words_are_broken_only_if_necessary() -> None:
    """A name with a hyphen is not broken, and tables do not break words into letters."""
    style = files("captioner.report").joinpath("page.css").read_text(encoding="utf-8")
    assert "anywhere" not in style and "break-all" not in style
    assert re.search(r"\.word \{[^}]*white-space: nowrap", style)
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)


def test_names_of_metrics_are_single_words(evaluated: Path, tmp_path: Path) -> None:
    source = report(evaluated, output=tmp_path / "page.html").read_text(encoding="utf-8")
    for name in ("BLEU-4", "CIDEr-D", "ROUGE-L"):
        assert f'<th scope="row" class="word">{name}</th>' in source
        assert f'<dt class="word">{name}</dt>' in source
    assert "<code>ROUGE-L|<wbr>beta:1.2|<wbr>tok:ptb|<wbr>" in source


def test_the_list_of_all_captions_scrolls_in_a_box(evaluated: Path, tmp_path: Path) -> None:
    page = Page(report(evaluated, output=tmp_path / "page.html"))
    lines = (evaluated / "evaluation" / "shapes-dev" / "greedy" / "captions.jsonl").read_text()
    assert len(
        [element for element in page.all("li") if element.get("class") == "entry"]
    ) == lines.count("\n")
    style = files("captioner.report").joinpath("page.css").read_text(encoding="utf-8")
    assert re.search(r"\.entries \{[^}]*max-height: \d+vh; overflow: auto", style)
    assert [
        element["tabindex"] for element in page.all("div") if element.get("class") == "entries"
    ] == ["0"]


@pytest.mark.parametrize("count, text", [(1, "1 image"), (2, "2 images")])
def test_one_image_is_singular(count: int, text: str, folder: Path) -> None:
    path = folder / "evaluation" / "shapes-dev" / "greedy"
    statistics = Statistics.load(path / "statistics.npz")
    rows = {name: rows[:count] for name, rows in statistics.rows.items()}
    fewer = Statistics(statistics.images[:count], rows)
    fewer.save(path / "statistics.npz")
    scores = {name: float(value) for name, value in fewer.scores().items()}
    content = json.loads((path / "scores.json").read_text())
    (path / "scores.json").write_text(json.dumps({**content, "scores": scores}))
    lines = (path / "captions.jsonl").read_text().splitlines(keepends=True)
    (path / "captions.jsonl").write_text("".join(lines[:count]))
    assert f"split dev, {text}</dd>" in report(folder).read_text(encoding="utf-8")


def test_few_images_give_a_note_about_the_intervals(folder: Path) -> None:
    assert "With fewer than 100 images" in Page(report(folder)).text


# The verb -------------------------------------------------------------------------------------


def test_the_verb_chooses_the_evaluation_and_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    test_folder = folder / "evaluation" / "shapes-test" / "beam2"
    shutil.copytree(folder / "evaluation" / "shapes-dev" / "greedy", test_folder)
    assert main(["report", str(folder), "--split", "test"]) == 0
    assert (test_folder / "report.html").is_file()
    target = tmp_path / "page.html"
    argv = ["--decoding", "greedy", "--images", "1", "--output", str(target)]
    assert main(["report", str(folder), *argv]) == 0
    assert f"wrote {target}" in capsys.readouterr().out
    assert target.is_file()


def test_wrong_inputs_get_one_line(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = folder / "evaluation" / "shapes-dev" / "greedy"

    def fails(*argv: object, says: str) -> None:
        assert main(["report", *map(str, argv)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("captioner: error: ") and says in error

    fails(tmp_path / "gone", says="no such run folder")
    fails(tmp_path, says="not a run")
    fails(folder, "--split", "test", says="has only shapes-dev/greedy")
    fails(folder, "--decoding", "beam9", says="has only shapes-dev/greedy")
    fails(folder, "--images", 0, says="images=0")
    content = (place / "statistics.npz").read_bytes()
    (place / "statistics.npz").write_bytes(content[:90])
    fails(folder, says="damaged")
    (place / "statistics.npz").write_bytes(content)
    rewrite(folder, image="another.png")
    fails(folder, says="of other images than the statistics")
    rewrite(folder, caption=None)
    fails(folder, says="captions.jsonl, line 1")
    (place / "captions.jsonl").write_bytes(b"\xff\xfe")
    fails(folder, says="UTF-8")
    (place / "captions.jsonl").unlink()
    fails(folder, says="captions.jsonl: no such file")
    (place / "scores.json").write_text('{"BLEU-4": 3}')
    fails(folder, says="scores.json")
    assert not (place / "report.html").exists()


def test_missing_columns_of_the_log_are_named(evaluated: Path, tmp_path) -> None:
    assert "The CSV log has no" not in report(evaluated, output=tmp_path / "a.html").read_text()
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    for log in copy.glob("logs/csv/*/metrics.csv"):
        log.write_text(log.read_text().replace("train_loss", "other", 1))
    page = report(copy).read_text(encoding="utf-8")
    assert "The CSV log has no training loss (train_loss)." in page
    for log in copy.glob("logs/csv/*/metrics.csv"):
        log.write_text("step,dev_loss\n3,2.5\n")
    page = report(copy).read_text(encoding="utf-8")
    assert "no training loss (train_loss), no dev loss with the wrong image (dev_loss_shu" in page
