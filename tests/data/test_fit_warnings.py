"""What does not fit the tokenizer and the lengths is said, and nothing where all fits."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from captioner.config import compose
from captioner.data.fit_warnings import length_warnings, tokenizer_warnings
from captioner.training.train import train

CHINESE = ["一个人在划船。", "两只狗在雪地里奔跑，一个男孩在看", "穿着红色T恤的人"]


@pytest.mark.parametrize(
    "captions",
    [
        CHINESE,
        ["犬が走っている", "男の人が公園で犬と遊んでいる"],
        ["ผู้ชายขี่ม้าที่ชายหาด", "สุนัขวิ่งบนหิมะ"],
        ["ក្មេងប្រុសកំពុងលេងបាល់"],
        ["狗在奔跑"],
        [*CHINESE, *["a dog runs"] * 6],  # a third of them
    ],
)
def test_sentences_without_spaces_are_no_words(captions: list[str]) -> None:
    (warning,) = tokenizer_warnings(captions, "word")
    assert "set tokenizer=character" in warning
    assert tokenizer_warnings(captions, "character") == []


@pytest.mark.parametrize(
    "captions",
    [
        ["a dog runs", "a sign that says 出口 in Chinese"],
        ["一个 人 在 划船 。", "两只 狗 在 雪地 里 奔跑"],  # somebody has cut them
        ["ผู้ชาย ขี่ ม้า ที่ ชายหาด"],
        ["एक आदमी घोड़े पर", "남자가 공원에서 개와 놀고 있다", "собака бежит"],
        ["a dog runs"] * 99 + CHINESE,
        [],
    ],
)
def test_words_with_spaces_are_words(captions: list[str]) -> None:
    assert tokenizer_warnings(captions, "word") == []


def test_cut_captions_are_counted_with_the_longest() -> None:
    cut, short = length_warnings([5, 41, 92], 40, 30)
    assert cut.startswith("2 of 3 training captions are longer than loader.max_words=40")
    assert "the longest has 92 words" in cut
    assert short.startswith("decoding.max_length=30 ends captions before")
    assert "the longest at 92 words" in short


def test_lengths_that_fit_are_not_told() -> None:
    assert length_warnings([5, 30, 12], 40, 30) == []
    assert length_warnings([], 40, 30) == []
    assert length_warnings([31, *[9] * 99], 40, 30) == []  # one of a hundred
    assert length_warnings([0, 3], 40, 30) == ["1 training captions hold no word and are skipped"]


def test_a_training_says_what_does_not_fit_and_survives_half_an_emoji(
    tiny, tmp_path, capsys
) -> None:
    rows = []
    for place in range(8):
        Image.new("RGB", (32, 32), (9 * place, 5, 7)).save(tmp_path / f"{place}.png")
        texts = ["两只狗在雪地里奔跑\ud83d", "一个男孩在看" + "，狗" * 40]
        split = "dev" if place > 5 else "train"
        rows.append({"image": f"{place}.png", "captions": texts, "split": split})
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=json", f"data.root={tmp_path}", "trainer.max_epochs=1"]
    run = train(compose([*tiny, *data]), tmp_path / "run", report=print)
    said = capsys.readouterr().out
    assert "data: lone surrogate in a caption, removed: 8" in said
    assert "warning: captions have no spaces between words" in said
    assert said.index("set tokenizer=character") < said.index("features:")  # before any work
    assert "6 of 12 training captions are longer than loader.max_words=40" in said
    assert "the longest has 81 words" in said  # 狗 and ，, 40 times, and the first
    assert run.folder.is_dir()
