"""Warnings about captions that do not fit the tokenizer or the lengths, and none if all fit."""

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
def test_captions_without_spaces_get_a_warning(captions: list[str]) -> None:
    (warning,) = tokenizer_warnings(captions, "word")
    assert "set tokenizer=character" in warning
    assert tokenizer_warnings(captions, "character") == []


@pytest.mark.parametrize(
    "captions",
    [
        ["a dog runs", "a sign that says 出口 in Chinese"],
        ["一个 人 在 划船 。", "两只 狗 在 雪地 里 奔跑"],  # already segmented
        ["ผู้ชาย ขี่ ม้า ที่ ชายหาด"],
        ["एक आदमी घोड़े पर", "남자가 공원에서 개와 놀고 있다", "собака бежит"],
        ["a dog runs"] * 99 + CHINESE,
        [],
    ],
)
def test_captions_with_spaces_get_no_warning(captions: list[str]) -> None:
    assert tokenizer_warnings(captions, "word") == []


def test_truncated_captions_are_counted_with_the_longest() -> None:
    truncated, undecodable = length_warnings([5, 41, 92], 40, 30)
    assert truncated.startswith("2 of 3 training captions are longer than loader.max_words=40")
    assert "the longest has 92 words" in truncated
    assert "training captions are longer than decoding.max_length=30" in undecodable
    assert "the longest has 92 words" in undecodable


def test_lengths_that_fit_get_no_warning() -> None:
    assert length_warnings([5, 30, 12], 40, 30) == []
    assert length_warnings([], 40, 30) == []
    assert length_warnings([31, *[9] * 99], 40, 30) == []  # one of a hundred
    assert length_warnings([0, 3], 40, 30) == ["1 training captions have no words and are skipped"]


def test_a_training_prints_the_warnings_and_removes_lone_surrogates(tiny, tmp_path, capsys) -> None:
    rows = []
    for place in range(8):
        Image.new("RGB", (32, 32), (9 * place, 5, 7)).save(tmp_path / f"{place}.png")
        texts = ["两只狗在雪地里奔跑\ud83d", "一个男孩在看" + "，狗" * 40]
        split = "dev" if place > 5 else "train"
        rows.append({"image": f"{place}.png", "captions": texts, "split": split})
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=json", f"data.root={tmp_path}", "trainer.max_epochs=1"]
    run = train(compose([*tiny, *data]), tmp_path / "run", report=print)
    output = capsys.readouterr().out
    assert "data: lone surrogate in a caption, removed: 8" in output
    assert "warning: captions have no spaces between words" in output
    assert output.index("set tokenizer=character") < output.index("features:")  # before any work
    assert "6 of 12 training captions are longer than loader.max_words=40" in output
    assert "the longest has 81 words" in output  # 狗 and ，, 40 times, and the first
    assert run.folder.is_dir()
