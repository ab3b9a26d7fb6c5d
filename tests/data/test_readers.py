"""Every layout is written in small and read back, with every known warning of real releases."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from captioner.data.read import DATASETS, read_records
from captioner.data.records import Dataset, Record
from captioner.files import write_whole

Captions = dict[str, tuple[str, ...]]


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read by a reader")


def captions_of(dataset: Dataset) -> Captions:
    return {record.image_id: record.captions for record in dataset.records}


def splits_of(dataset: Dataset) -> dict[str, str]:
    return {record.image_id: record.split for record in dataset.records}


def write_flickr(root: Path, token: str, lists: dict[str, str] | None = None) -> None:
    (root / "Flickr8k.token.txt").write_bytes(token.encode())
    for split, text in (lists or {}).items():
        (root / f"Flickr_8k.{split}Images.txt").write_bytes(text.encode())


TOKEN = "b.jpg#0\tA dog .\nb.jpg#1\tTwo dogs .\na.jpg#0\tA cat , asleep .\nc.jpg#0\tA cow .\n"


def test_flickr_gives_captions_in_the_order_of_the_file_and_splits_of_the_lists(tmp_path):
    touch(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg", "c.jpg"])
    write_flickr(tmp_path, TOKEN, {"train": "a.jpg\n", "dev": "b.jpg\n", "test": "c.jpg\n"})
    dataset = read_records(format="flickr", root=str(tmp_path))
    folder = tmp_path / "Flicker8k_Dataset"
    assert dataset.records == (
        Record(str(folder / "b.jpg"), "b.jpg", ("A dog .", "Two dogs ."), "dev"),
        Record(str(folder / "a.jpg"), "a.jpg", ("A cat , asleep .",), "train"),
        Record(str(folder / "c.jpg"), "c.jpg", ("A cow .",), "test"),
    )
    assert dataset.warnings == {}


def test_flickr_without_a_test_list_passes_over_images_of_no_list(tmp_path):
    touch(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg", "c.jpg"])
    write_flickr(tmp_path, TOKEN, {"train": "a.jpg\n", "dev": "b.jpg\n"})
    dataset = read_records(format="flickr", root=str(tmp_path))
    assert splits_of(dataset) == {"b.jpg": "dev", "a.jpg": "train"}
    assert dataset.warnings == {"image in none of the named splits": 1}
    with pytest.raises(ValueError, match=r"'test' is empty.*train \(1 images\), dev \(1 images\)"):
        dataset.split("test")
    with pytest.raises(ValueError, match="'val' is not known"):
        dataset.split("val")
    assert [record.image_id for record in dataset.split("dev")] == ["b.jpg"]


def test_flickr_without_a_training_list_trains_on_what_is_left(tmp_path):
    touch(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg", "c.jpg"])
    write_flickr(tmp_path, TOKEN, {"dev": "b.jpg\n", "test": "c.jpg\n"})
    dataset = read_records(format="flickr", root=str(tmp_path))
    assert splits_of(dataset) == {"b.jpg": "dev", "a.jpg": "train", "c.jpg": "test"}


@pytest.mark.reliability("damaged files")
def test_flickr_mends_counts_and_survives_the_faults_of_releases(tmp_path):
    touch(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg", "bare.jpg", "blank.jpg"])
    token = (
        "\ufeffa.jpg#0\tA cat .\r\n"
        "a.jpg#0\tA cat .\r\n"  # the same line again
        "a.jpg#1\tA cat .\r"  # two people who wrote the same
        "b.jpg.1#0\tA dog .\n"  # an image with a number behind its name
        "2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n"
        "gone.jpg#0\tNothing .\ngone.jpg#1\tNobody .\n"
        "b.jpg#1\t   \n"
        "blank.jpg#0\t\n"
        "no tab here\n"
        "\n"
        "../../etc/passwd#0\tSecrets .\n"
        "/etc/passwd#0\tSecrets .\n"
        "b.jpg#2\tA brown dog .\x85"
    )
    lists = {"train": "\ufeffa.jpg\r\ngone.jpg\r\n\r\n", "dev": "b.jpg\na.jpg\n"}
    write_flickr(tmp_path, token, lists)
    dataset = read_records(format="flickr", root=str(tmp_path))
    assert captions_of(dataset) == {
        "a.jpg": ("A cat .", "A cat ."),
        "b.jpg": ("A dog .", "A brown dog ."),
    }
    assert splits_of(dataset) == {"a.jpg": "train", "b.jpg": "dev"}
    assert dataset.warnings == {
        "byte-order mark": 2,
        "line end of old Mac OS": 1,
        "repeated caption line, skipped": 1,
        "image name followed by a number, repaired": 1,
        "image name followed by a number, skipped": 1,
        "caption of an absent image": 2,
        "blank caption": 2,
        "line without a tab": 1,
        "image outside the images folder, refused": 2,
        "absent image, listed without a caption": 1,
        "image in two splits, the first is used": 1,
        "image without captions": 2,
    }
    assert dataset.places["caption of an absent image"] == ("gone.jpg",)
    assert dataset.places["line without a tab"] == ("Flickr8k.token.txt, line 10",)
    assert dataset.places["image without captions"] == ("blank.jpg", "bare.jpg")


def test_flickr30k_and_another_captions_file(tmp_path):
    touch(tmp_path / "flickr30k-images", ["1.jpg", "2.jpg"])
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tMen .\n2.jpg#0\tA man .\n")
    (tmp_path / "cn.token.txt").write_text("1.jpg#0\t一个人在划船。\n", encoding="utf-8")
    english = read_records(format="flickr", root=str(tmp_path))
    assert captions_of(english) == {"1.jpg": ("Men .",), "2.jpg": ("A man .",)}
    chinese = read_records(format="flickr", root=str(tmp_path), captions="cn.token.txt")
    assert captions_of(chinese) == {"1.jpg": ("一个人在划船。",)}
    assert chinese.warnings == {"image without captions": 1}


def test_kaggle_reads_quoted_commas_and_official_split_lists(tmp_path):
    touch(tmp_path / "Images", ["a.jpg", "b.jpg"])
    text = 'image,caption\na.jpg,"A cat , a ""tom"" , sleeps ."\nb.jpg,A dog .\nb.jpg,A dog .\n'
    (tmp_path / "captions.txt").write_text(text)
    dataset = read_records(format="kaggle", root=str(tmp_path), holdout=0.0)
    assert captions_of(dataset) == {
        "a.jpg": ('A cat , a "tom" , sleeps .',),
        "b.jpg": ("A dog .", "A dog ."),
    }
    assert set(splits_of(dataset).values()) == {"train"}
    assert dataset.warnings == {"caption given twice for its image, kept": 1}
    (tmp_path / "Flickr_8k.testImages.txt").write_text("a.jpg\n")
    listed = read_records(format="kaggle", root=str(tmp_path), holdout=0.0)
    assert splits_of(listed) == {"a.jpg": "test", "b.jpg": "train"}


@pytest.mark.reliability("damaged files")
def test_kaggle_reads_flickr30k_with_its_broken_row(tmp_path):
    touch(tmp_path / "flickr30k_images" / "flickr30k_images", ["1.jpg", "2199200615.jpg"])
    (tmp_path / "flickr30k_images" / "results.csv").write_text(
        'image_name| comment_number| comment\n1.jpg| 0| A "man" , up .\n1.jpg| 1| "Up\n'
        "2199200615.jpg| 4   A dog runs across the grass .\n2199200615.jpg| 3| A dog .\n"
    )
    dataset = read_records(format="kaggle", root=str(tmp_path))
    assert captions_of(dataset) == {
        "1.jpg": ('A "man" , up .', '"Up'),
        "2199200615.jpg": ("A dog .",),
    }
    assert dataset.warnings == {"row with too many or too few columns": 1}


def karpathy(*entries: tuple[str, str, str | None, list[str]]) -> dict[str, Any]:
    images = []
    for filepath, filename, split, captions in entries:
        sentences = [{"raw": text, "sentid": count} for count, text in enumerate(captions)]
        entry = {"filename": filename, "sentences": sentences}
        entry |= {"filepath": filepath} if filepath else {}
        images.append(entry | ({"split": split} if split else {}))
    return {"images": images, "dataset": "small"}


def test_karpathy_joins_filepath_and_reads_restval_as_train(tmp_path):
    touch(tmp_path, ["val2014/1.jpg", "val2014/2.jpg", "train2014/3.jpg", "val2014/4.jpg"])
    data = karpathy(
        ("val2014", "2.jpg", "restval", ["A bus.", "A red bus. "]),
        ("val2014", "1.jpg", "val", ["A bed.\nAnd a lamp."]),
        ("train2014", "3.jpg", "train", ["A bear.", "A bear."]),
        ("val2014", "4.jpg", "test", ["A cup."]),
        ("val2014", "5.jpg", "test", ["A cap.", "A hat."]),
    )
    (tmp_path / "dataset_coco.json").write_text(json.dumps(data))
    dataset = read_records(format="karpathy", root=str(tmp_path))
    assert captions_of(dataset) == {
        "val2014/2.jpg": ("A bus.", "A red bus."),
        "val2014/1.jpg": ("A bed. And a lamp.",),
        "train2014/3.jpg": ("A bear.", "A bear."),
        "val2014/4.jpg": ("A cup.",),
    }
    assert list(splits_of(dataset).values()) == ["train", "dev", "train", "test"]
    assert dataset.warnings == {
        "caption of several lines, joined": 1,
        "caption of an absent image": 2,
    }
    assert dataset.records[0].image == str(tmp_path / "val2014" / "2.jpg")


def test_karpathy_finds_flickr_images_and_refuses_two_files(tmp_path):
    touch(tmp_path / "Flicker8k_Dataset", ["a.jpg", "b.jpg"])
    data = karpathy(("", "a.jpg", "train", ["A cat ."]), ("", "b.jpg", "val", []))
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps(data))
    dataset = read_records(format="karpathy", root=str(tmp_path), holdout=0.0)
    assert captions_of(dataset) == {"a.jpg": ("A cat .",)}
    assert dataset.warnings == {"image without captions": 1}
    (tmp_path / "dataset_coco.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"dataset_coco.json, dataset_flickr8k.json: choose one"):
        read_records(format="karpathy", root=str(tmp_path))


def coco(images: dict[int, str], annotations: list[tuple[int, str]]) -> str:
    return json.dumps(
        {
            "images": [{"id": key, "file_name": name} for key, name in images.items()],
            "annotations": [
                {"id": 70 + count, "image_id": key, "caption": caption}
                for count, (key, caption) in enumerate(annotations)
            ],
        }
    )


def test_coco_reads_train_and_val_in_the_order_of_the_images(tmp_path):
    touch(tmp_path, ["train2017/9.jpg", "train2017/3.jpg", "train2017/8.jpg", "val2017/9.jpg"])
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "captions_train2017.json").write_text(
        coco(
            {9: "9.jpg", 3: "3.jpg", 8: "8.jpg", 1: "1.jpg"},
            [(3, "A tie."), (9, "A cow.\n"), (3, "A tie."), (5, "Lost."), (1, "Away.")],
        )
    )
    (folder / "captions_val2017.json").write_text(coco({9: "9.jpg"}, [(9, "A sink.")]))
    dataset = read_records(format="coco", root=str(tmp_path))
    assert captions_of(dataset) == {
        "train2017/9.jpg": ("A cow.",),
        "train2017/3.jpg": ("A tie.", "A tie."),
        "val2017/9.jpg": ("A sink.",),
    }
    assert list(splits_of(dataset).values()) == ["train", "train", "dev"]
    assert dataset.warnings == {
        "caption of an image_id that the file does not list": 1,
        "caption of an absent image": 1,
        "image without captions": 1,
    }
    only = read_records(
        format="coco", root=str(tmp_path), captions="annotations/captions_val2017.json"
    )
    assert splits_of(only) == {"val2017/9.jpg": "dev"}


def test_coco_reads_a_file_with_another_name(tmp_path):
    touch(tmp_path / "photos", [f"{count}.jpg" for count in range(3)])
    images = {count: f"{count}.jpg" for count in range(3)}
    (tmp_path / "mine.json").write_text(coco(images, [(key, "A house.") for key in images]))
    dataset = read_records(
        format="coco", root=str(tmp_path), captions="mine.json", images="photos", holdout=0
    )
    assert splits_of(dataset) == {"0.jpg": "train", "1.jpg": "train", "2.jpg": "train"}


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_table_reads_rows_columns_and_splits_with_any_delimiter(tmp_path, mark):
    elsewhere = tmp_path / "elsewhere" / "d.jpg"
    touch(tmp_path, ["root/images/a.jpg", "root/b.jpg", "root/c.jpg", str(elsewhere)])
    rows = [
        ["split", "image", "note", "caption_1", "caption 2"],
        ["Training", "a.jpg", "n", "A cat.", "One cat."],
        ["valid", "b.jpg", "", "A dog.", ""],
        ["testing", "./c.jpg", "", "A cow."],
        ["train", str(elsewhere), "", "A door.", "The door."],
        ["", "a.jpg", "", "A grey cat.", ""],
    ]
    with open(tmp_path / "root" / "data.csv", "w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    dataset = read_records(format="table", root=str(tmp_path / "root"))
    assert captions_of(dataset) == {
        "a.jpg": ("A cat.", "One cat.", "A grey cat."),
        "b.jpg": ("A dog.",),
        "c.jpg": ("A cow.",),
        elsewhere.as_posix(): ("A door.", "The door."),
    }
    assert list(splits_of(dataset).values()) == ["train", "dev", "test", "train"]
    assert dataset.warnings == {}
    assert dataset.records[0].image == str(tmp_path / "root" / "images" / "a.jpg")


@pytest.mark.reliability("damaged files")
def test_table_repairs_captions_without_quotes(tmp_path):
    touch(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "captions.csv").write_text(
        'image,caption\na.jpg,A cat, a dog,1,000 birds\nb.jpg, "A cow, alone"\n\nb.jpg\n,,\n'
    )
    dataset = read_records(format="table", root=str(tmp_path))
    assert captions_of(dataset) == {
        "a.jpg": ("A cat, a dog,1,000 birds",),
        "b.jpg": ("A cow, alone",),
    }
    assert dataset.warnings == {
        "caption with a comma but without quotes, repaired": 2,
        "row with too many or too few columns": 1,
    }


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("a.jpg,A cat.\n", "no column 'image' among 'a.jpg', 'A cat.'"),
        ("image,title\na.jpg,A cat.\n", "no column 'caption' among 'image', 'title'"),
        ("", "no column 'image' among ''"),
        ("image,caption,split\na.jpg,A cat.,dve\n", "line 2: split='dve' is not known"),
        ('image,caption\na.jpg,A cat.\na.jpg,"A cat' + "\nor a dog" * 50, "line 3: not a read"),
        ('image,caption\na.jpg,"' + "x" * 200_000, "line 2: not a readable table"),
    ],
)
def test_errors_of_tables_name_the_place(tmp_path, rows, fault):
    touch(tmp_path, ["a.jpg"])
    (tmp_path / "captions.csv").write_text(rows)
    with pytest.raises(ValueError, match=r"captions.csv") as error:
        read_records(format="table", root=str(tmp_path))
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


ENTRIES = [
    {"image": "images/a.jpg", "captions": ["A cat.", " A tom. ", ""], "split": "val"},
    {"image": "b.jpg", "caption": "A dog.", "split": "train"},
    {"image": "../outside.jpg", "caption": "Away.", "split": "train"},
    {"image": "images\\a.jpg", "caption": "A grey cat."},
    {"image": "c.jpg", "captions": [], "split": "test"},
    {"image": "b.jpg", "caption": None},
]


@pytest.mark.parametrize("lines", [True, False])
def test_json_reads_lists_and_json_lines(tmp_path, lines):
    touch(tmp_path, ["outside.jpg", "root/images/a.jpg", "root/b.jpg", "root/c.jpg"])
    texts = [json.dumps(entry) for entry in ENTRIES]
    text = "\n\n".join(texts) if lines else f"[{', '.join(texts)}]"
    name = "captions.jsonl" if lines else "captions.json"
    (tmp_path / "root" / name).write_text(text)
    dataset = read_records(format="json", root=str(tmp_path / "root"))
    assert captions_of(dataset) == {
        "images/a.jpg": ("A cat.", "A tom.", "A grey cat."),
        "b.jpg": ("A dog.",),
    }
    assert splits_of(dataset) == {"images/a.jpg": "dev", "b.jpg": "train"}
    assert dataset.warnings == {
        "blank caption": 2,
        "image outside the images folder, refused": 1,
        "image without captions": 1,
    }


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"image": "a.jpg", "caption": "A cat."}\n{"image": "a.jpg"', "line 2: not valid JSON"),
        ('[{"image": "a.jpg",\n "caption": }]', "line 2: not valid JSON"),
        ("[" * 100_000, "captions.json"),
        ('["a.jpg"]', "entry 1: expected an object"),
        ('{"caption": "A cat."}', "line 1: no key 'image' among 'caption'; accepted"),
        ('{"image": "a.jpg", "title": "A"}', "line 1: no key 'caption' among 'image', 'title'"),
        ('{"image": 3, "caption": "A"}', "line 1: 'image' must be a text, got 3"),
        ('{"a.jpg": "A cat.", "a.jpg": "A tom."}', "the key 'a.jpg' is repeated"),
        ('"a.jpg"', "neither a list of objects nor COCO's JSON"),
        ('{"image": "a.jpg", "caption": [3]}', "line 1: captions must be texts, got 3"),
        ('{"image": "a.jpg", "split": 3}', "line 1: 'split' must be a text, got 3"),
        ('{"image": "a.jpg", "caption": "A", "split": "x"}', "line 1: split='x' is not known"),
    ],
)
def test_errors_of_json_name_the_place(tmp_path, text, fault):
    touch(tmp_path, ["a.jpg"])
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=r"captions\.json") as error:
        read_records(format="json", root=str(tmp_path))
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("format", ["karpathy", "coco"])
@pytest.mark.parametrize("text", ["[]", "{}", '{"images": 3}', '{"images": [4]}'])
def test_json_of_another_format_is_an_error(tmp_path, format, text):
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match="'images' must be a list of objects"):
        read_records(format=format, root=str(tmp_path), captions="captions.json")


def test_folder_reads_text_files_and_splits_of_top_level_folders(tmp_path):
    touch(tmp_path, ["train/x/a.JPG", "train/b.png", "val/b.jpeg", "test/c.webp", ".hid/d.jpg"])
    (tmp_path / "train" / "x" / "a.txt").write_bytes("\ufeffA cat.\r\n\r\nA tom.\r\n".encode())
    (tmp_path / "val" / "b.txt").write_text("A dog.")
    (tmp_path / "test" / "c.txt").write_text("A cow.\nA cow.\n")
    (tmp_path / "test" / "lonely.txt").write_text("A sheep.\n")
    (tmp_path / ".hid" / "d.txt").write_text("A secret.\n")
    (tmp_path / "val" / "loop").symlink_to(tmp_path, target_is_directory=True)
    dataset = read_records(format="folder", root=str(tmp_path))
    assert captions_of(dataset) == {
        "test/c.webp": ("A cow.", "A cow."),
        "train/x/a.JPG": ("A cat.", "A tom."),
        "val/b.jpeg": ("A dog.",),
    }
    assert list(splits_of(dataset).values()) == ["test", "train", "dev"]
    assert dataset.warnings == {
        "byte-order mark": 1,
        "caption given twice for its image, kept": 1,
        "image without captions": 1,
        "text file without an image": 1,
    }


def test_folder_reads_captions_from_another_folder(tmp_path):
    touch(tmp_path / "photos", ["d/a.jpg", "b.jpg"])
    for name in ("d/a", "b"):
        path = tmp_path / "words" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"About {name}.\n")
    dataset = read_records(
        format="folder", root=str(tmp_path), images="photos", captions="words", holdout=0
    )
    assert captions_of(dataset) == {"b.jpg": ("About b.",), "d/a.jpg": ("About d/a.",)}
    with pytest.raises(FileNotFoundError, match=r"data.captions='texts' is not a folder"):
        read_records(format="folder", root=str(tmp_path), captions="texts")


def test_shapes_are_drawn_once_and_then_read(tmp_path, monkeypatch):
    drawn = []

    def draw(root: Path, **_: Any) -> Path:
        drawn.append(root)
        touch(root, ["images/0.png"])
        line = json.dumps({"image": "images/0.png", "captions": ["a disc"], "split": "dev"})
        return write_whole(root / "captions.jsonl", line + "\n")

    monkeypatch.setattr("captioner.data.shapes.draw", draw)
    monkeypatch.chdir(tmp_path)
    root = "datasets/shapes"
    first, second = (read_records(format="shapes", root=root) for _ in range(2))
    assert drawn == [Path(root)]
    assert captions_of(first) == captions_of(second) == {"images/0.png": ("a disc",)}
    assert splits_of(first) == {"images/0.png": "dev"}


@pytest.mark.reliability("files decide nothing")
def test_shapes_are_drawn_only_into_the_default_folder(tmp_path):
    root = tmp_path / "not there"
    with pytest.raises(FileNotFoundError, match=f"captioner data draw 'data.root={root}'; another"):
        read_records(format="shapes", root=str(root))
    assert not root.exists()


@pytest.mark.reliability("damaged files")
def test_text_in_another_encoding_is_an_error_with_a_suggestion(tmp_path):
    touch(tmp_path / "images", ["a.jpg"])
    token = "a.jpg#0\tA cat .\na.jpg#1\tA café .\n"
    (tmp_path / "Flickr8k.token.txt").write_bytes(token.encode("latin-1"))
    with pytest.raises(
        ValueError,
        match=r"token\.txt, line 2: not valid utf-8; cp1252 reads '.*A café \.'.*=cp1252$",
    ):
        read_records(format="flickr", root=str(tmp_path))
    dataset = read_records(format="flickr", root=str(tmp_path), encoding="latin-1")
    assert captions_of(dataset) == {"a.jpg": ("A cat .", "A café .")}
    (tmp_path / "Flickr8k.token.txt").write_bytes(token.encode("utf-16"))  # with its mark
    assert read_records(format="flickr", root=str(tmp_path)).records == dataset.records
    (tmp_path / "Flickr8k.token.txt").write_bytes(token.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"not valid utf-8; utf-16-le reads .*=utf-16-le$"):
        read_records(format="flickr", root=str(tmp_path))
    utf16 = read_records(format="flickr", root=str(tmp_path), encoding="utf-16-le")
    assert captions_of(utf16) == captions_of(dataset)
    with pytest.raises(ValueError, match=r"data.encoding='utf-88' is not known; choose utf-8"):
        read_records(format="flickr", root=str(tmp_path), encoding="utf-88")


@pytest.mark.parametrize("format", sorted(set(DATASETS) - {"shapes", "worlds"}))
def test_errors_of_missing_files_name_the_override(tmp_path, format):
    with pytest.raises(FileNotFoundError, match=r"data.root=.*nowhere' is not a folder"):
        read_records(format=format, root=str(tmp_path / "nowhere"))
    if format != "folder":
        with pytest.raises(
            FileNotFoundError, match=r"no caption file in .*: looked for .*captions="
        ):
            read_records(format=format, root=str(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"data.captions='my.txt' does not exist: "):
            read_records(format=format, root=str(tmp_path), captions="my.txt")


def test_the_error_of_a_missing_images_folder_names_the_override(tmp_path):
    write_flickr(tmp_path, TOKEN)
    with pytest.raises(FileNotFoundError, match=r"Flicker8k_Dataset, .*set data.images=\.\.\."):
        read_records(format="flickr", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data.images='photos': looked for .*photos; set"):
        read_records(format="flickr", root=str(tmp_path), images="photos")
    touch(tmp_path / "Images", ["other.jpg"])
    with pytest.raises(ValueError, match=r"has no image with a caption.*absent image: 4"):
        read_records(format="flickr", root=str(tmp_path))


def test_unknown_format_and_wrong_holdout_are_errors(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.format='flikr' is not known; choose flickr, kaggle"
    ):
        read_records(format="flikr", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"did you mean karpathy\?"):
        read_records(format="karpaty", root=str(tmp_path))
    for holdout in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"data.holdout=.* choose 0 <= holdout < 0.5"):
            read_records(format="folder", root=str(tmp_path), holdout=holdout)
