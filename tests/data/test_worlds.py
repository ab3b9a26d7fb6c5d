"""Small worlds: what is drawn, and that the encoder reads it without loss."""

import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.checkpoints.places import anchored
from captioner.config import compose
from captioner.data.idioms import IDIOMS, LINKS, followers, links
from captioner.data.other_inputs import CHINESE, RATE, tones, translate
from captioner.data.read import read_records
from captioner.data.records import Dataset
from captioner.data.worlds import (
    COUNTED,
    COUNTS,
    DELAYS,
    DIGITS,
    KEPT,
    LONGEST_WAIT,
    MORE,
    PHRASES,
    PROBLEMS,
    STEPS,
    WORDS,
    WORLDS,
    draw,
)
from captioner.images import open_image
from captioner.models.encoders.libraries import build_encoder


def drawn(root: Path, name: str) -> Dataset:
    draw(root / name)
    return read_records(format="worlds", root=str(root / name))


def encoded(images: list[str]) -> torch.Tensor:
    encoder = build_encoder(library="pixels", network="gray")
    pixels = [encoder.transform.pixels(open_image(image)) for image in images]
    return encoder(torch.stack(pixels)).pooled.unflatten(1, (16, 16))  # [B, symbols, positions]


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_has_its_numbers_of_pairs_and_is_drawn_the_same_again(name, tmp_path) -> None:
    first, second = (drawn(tmp_path / place, name) for place in "ab")
    assert not first.warnings
    splits = Counter(record.split for record in first.records)
    assert splits == COUNTS | MORE.get(name, {})
    for one, other in zip(first.records, second.records, strict=True):
        assert one.captions == other.captions
        assert Path(one.image).read_bytes() == Path(other.image).read_bytes()


def test_a_sentence_is_read_back_from_its_pixels(tmp_path) -> None:
    records = drawn(tmp_path, "dictation").split("test")
    symbols = encoded([record.image for record in records])
    assert set(symbols.unique().tolist()) == {0.0, 1.0}
    for record, image in zip(records, symbols, strict=True):
        positions = image[:, image.any(0)].argmax(0)
        assert " ".join(WORDS[symbol] for symbol in positions) == record.captions[0]
    assert len({record.captions for record in drawn(tmp_path, "dictation").records}) == 1060


def test_a_digit_follows_its_delay(tmp_path) -> None:
    records = drawn(tmp_path, "delayed_copy").split("test")
    seen = set()
    for record, image in zip(records, encoded([r.image for r in records]), strict=True):
        assert image.sum() == 1
        *waits, digit = record.captions[0].split()
        assert set(waits) == {"wait"}
        assert digit == DIGITS[int(image[:, 0].argmax())]
        seen.add((digit, len(waits)))
    assert len(seen) == len(records) == len(DIGITS) * len(DELAYS)


def test_from_every_idiom_every_other_one_can_be_reached() -> None:
    table = followers()
    for idiom in IDIOMS:
        reached, todo = set[str](), [idiom]
        while todo:
            fresh = [after for after in table[todo.pop()[3]] if after not in reached]
            reached.update(fresh)
            todo += fresh
        assert reached == set(IDIOMS)
    assert all(len(idiom) == 4 for idiom in IDIOMS)


def test_a_chain_continues_the_word_of_the_referee_and_says_no_idiom_twice(tmp_path) -> None:
    records = drawn(tmp_path, "idiom_chain").split("test")
    symbols = encoded([record.image for record in records]).flatten(1)
    assert set(symbols.sum(1).tolist()) == {1.0}
    for record, number in zip(records, symbols.argmax(1), strict=True):
        chain = [IDIOMS[int(number)], *links(record.captions[0])]
        assert len(set(chain)) == len(chain) == LINKS + 1
        assert set(chain) <= set(IDIOMS)
        assert all(before[3] == after[0] for before, after in pairwise(chain))


def test_each_problem_of_a_stream_has_its_answer(tmp_path) -> None:
    for name, count in (("stream", PROBLEMS), ("single_problem", 1)):
        for record in drawn(tmp_path, name).split("test"):
            problems = re.findall(r"(\w+)((?: tick)+) say (\w+)", record.captions[0])
            assert len(problems) == count
            assert all(word == answer and word in KEPT for word, _, answer in problems)
            assert max(len(ticks.split()) for _, ticks, _ in problems) <= LONGEST_WAIT


def test_the_two_loudest_tones_of_a_key_are_those_of_the_standard() -> None:
    for digit, tones_of_key in {"1": (697, 1209), "5": (770, 1336), "0": (941, 1336)}.items():
        sound = tones(digit, random.Random(3))
        loud = np.abs(np.fft.rfft(sound))
        frequencies = np.fft.rfftfreq(len(sound), 1 / RATE)
        for low, high, expected in ((600, 1100, tones_of_key[0]), (1100, 1600, tones_of_key[1])):
            band = (frequencies > low) & (frequencies < high)
            assert abs(frequencies[band][loud[band].argmax()] - expected) < 10


def test_what_is_tested_does_not_occur_in_training(tmp_path) -> None:
    for name in ("translation", "telephone"):
        records = drawn(tmp_path, name).records
        assert len({record.captions[0] for record in records}) == len(records)
    records = drawn(tmp_path, "pictures").records
    drawings = {open_image(record.image).tobytes() for record in records}
    assert len(drawings) == len(records)


def test_a_sentence_is_translated(tmp_path) -> None:
    words = ("昨天", "老师", "在公园", "看见了", "两只", "猫")
    assert translate(words) == "the teacher saw two cats in the park yesterday"
    assert translate(("", "孩子", "", "画了", "一只", "鸟")) == "the child drew a bird"
    records = drawn(tmp_path, "translation").split("test")
    for record, image in zip(records, encoded([record.image for record in records])):
        rows = image.argmax(0)[image.amax(0) > 0]  # of the columns that have a word
        chinese = "".join(CHINESE[row] for row in rows.tolist())
        assert ("昨天" in chinese) == record.captions[0].endswith("yesterday")
        assert ("两只鸟" in chinese) == ("two birds" in record.captions[0])


def test_the_words_of_a_drawing_are_those_of_its_pixels(tmp_path) -> None:
    records = drawn(tmp_path, "pictures").split("test")
    for record, image in zip(records, encoded([record.image for record in records])):
        words = record.captions[0].split()
        assert ("left" in words) == (image[:, 8:].max() > 0)
        assert ("white" in words[:2]) == (image[:8, :8].max() == 1)
        for shape, count in {"square": 49, "frame": 24, "diamond": 25, "cross": 13}.items():
            assert (shape == words[2]) == ((image[:8, :8] > 0).sum() == count)


def test_sentences_occur_as_often_as_the_world_says(tmp_path) -> None:
    for name, often in (("frequency_9_1", 180), ("frequency_7_3", 140)):
        records = drawn(tmp_path, name).split("train")
        counts = Counter(record.captions[0] for record in records)
        assert counts == {"i love you": often, "i love him": 200 - often}
        assert not encoded([records[0].image]).any()
    counted = Counter(record.captions[0] for record in drawn(tmp_path, "counting").split("train"))
    assert counted == {" ".join(DIGITS[:last]): 200 // COUNTED for last in range(1, COUNTED + 1)}


def test_each_place_of_a_walk_is_the_one_before_and_its_move(tmp_path) -> None:
    records = drawn(tmp_path, "walk").split("test")
    for record, image in zip(records, encoded([r.image for r in records]), strict=True):
        start, *moves = image[:, image.any(0)].argmax(0).tolist()
        places = [DIGITS.index(word) for word in record.captions[0].split()]
        assert len(places) == 1 + STEPS == 1 + len(moves)
        assert places[0] == start
        changes = [(after - before) % 8 for before, after in pairwise(places)]
        assert changes == [{8: 7, 9: 1}[move] for move in moves]


def test_a_verb_agrees_with_the_first_noun_and_not_with_the_last(tmp_path) -> None:
    lengths, attracted = Counter(), 0
    for record in drawn(tmp_path, "agreement").split("train"):
        words = record.captions[0].split()
        first, last, verb = words[1], words[-2], words[-1]
        lengths[len(words)] += 1
        assert first.endswith("s") != verb.endswith("s")
        attracted += first.endswith("s") != last.endswith("s")
    assert set(lengths) == {3 + 3 * phrases for phrases in range(PHRASES + 1)}
    assert min(lengths.values()) > 150
    assert 300 < attracted < 500  # half of the four fifths that have another noun


def test_a_second_thought_replaces_the_first(tmp_path) -> None:
    captions = [r.captions[0] for r in drawn(tmp_path, "second_thoughts").split("train")]
    changed = [caption for caption in captions if "改" in caption]
    assert 160 < len(changed) < 240
    for caption in captions:
        *named, answer = (character for character in caption if character in "琴棋书画")
        assert answer == named[-1]
        assert len(named) == len(set(named)) == 1 + (caption in changed)


def test_rehearsal_changes_one_of_three_sentences(tmp_path) -> None:
    kinds = [{r.captions[0] for r in drawn(tmp_path, n).records} for n in ("sports", "rehearsal")]
    assert kinds[0] - kinds[1] == {"我喜欢打篮球"}
    assert kinds[1] - kinds[0] == {"我喜欢打乒乓球"}
    assert len(kinds[0]) == 3


def test_the_positions_of_the_pixel_encoder_add_up_to_its_pooled_feature() -> None:
    encoder = build_encoder(library="pixels", network="gray", image_size=6)
    pixels = torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8).expand(2, 3, 6, 6)
    pooled, grid = encoder(pixels)
    np.testing.assert_allclose(pooled, (pixels[:, 0].flatten(1) / 255.0), rtol=1e-6)
    assert grid is not None
    assert grid.shape == (2, 6, 36)
    torch.testing.assert_close(grid.sum(1), pooled)
    columns = grid[:, 4].unflatten(1, (6, 6))
    torch.testing.assert_close(columns[:, :, 4], pooled.unflatten(1, (6, 6))[:, :, 4])
    assert not columns[:, :, :4].any()


@pytest.mark.reliability("files decide nothing")
def test_a_missing_world_is_drawn_only_in_the_default_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = "datasets/worlds/counting"
    assert read_records(format="worlds", root=root).split("dev")
    with pytest.raises(FileNotFoundError, match="captioner data draw 'data.root=.*' data=worlds"):
        read_records(format="worlds", root=str(tmp_path / "not there"))
    with pytest.raises(ValueError, match="'countign' is not known.*did you mean counting"):
        draw(Path("datasets/worlds/countign"))


def test_the_path_of_a_world_remains_relative() -> None:
    config = compose(["experiment=lesson_memory"])
    assert anchored(config)["data"]["root"] == "datasets/worlds/dictation"
    moved = {**config, "data": {**config["data"], "root": "mine/dictation"}}
    assert Path(anchored(moved)["data"]["root"]).is_absolute()
