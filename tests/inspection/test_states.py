"""Tables of states, the words of a unit, and phrase search, on planted values and a real model."""

import numpy as np
import pytest
import torch
from support.decoders import EVERY, B, T, V, build, features

import captioner
from captioner.inspection.collecting import collect, read_states
from captioner.inspection.phrases import find_phrase, search_phrase
from captioner.inspection.states import StateTable
from captioner.inspection.units import top_words

TEXTS = ("a red fish", "a blue fish is left of a red boat", "the red fish", "two boats")


def planted(**units: dict[str, float]) -> StateTable:
    """A table in which unit n of "cell.hidden" has a value at some words, and else 0.01 * row."""
    reads = [("X_0", "<start>", *text.split()) for text in TEXTS]
    words = [word for caption in reads for word in caption]
    values = np.full((len(words), 1, len(units)), 0.01, np.float32)
    for number, of_unit in enumerate(units.values()):
        for row, word in enumerate(words):
            values[row, 0, number] = of_unit.get(word, values[row, 0, number])
    return StateTable(tuple("abcd"), tuple(reads), {"cell.hidden": values})


@pytest.mark.parametrize(
    "variant", ["show_tell x0 lstm tied", "show_tell h0 gru ", "up_down lstm dot ", "adaptive mgu"]
)
def test_recorded_states_are_those_that_the_decoder_passes_on(variant: str) -> None:
    decoder, images = build(variant), features()
    inputs = torch.randint(V, (B, T))
    first, found = read_states(decoder, images, inputs)
    assert first == ("X_0" if "x0" in variant else "image")
    state = decoder.start(images)
    for step in range(T + 1):
        for site, name in (("cell.hidden", "h"), ("cell.memory", "c")):
            if name in state:
                np.testing.assert_allclose(found[site][:, step], state[name].detach(), atol=1e-6)
        if step < T:
            _, state = decoder.step(inputs[:, step], state)


@pytest.mark.parametrize("variant", [name for name in EVERY if "transformer" in name][:1])
def test_a_transformer_has_layers_and_no_step_0(variant: str) -> None:
    _, found = read_states(build(variant), features(), torch.randint(V, (B, T)))
    assert set(found) == {"layer.hidden"}
    assert np.isnan(found["layer.hidden"][:, 0]).all()
    assert not np.isnan(found["layer.hidden"][:, 1:]).any()


def test_a_table_of_a_split_has_the_states_of_a_trace(run, tmp_path) -> None:
    model = captioner.load(run)
    exact = groups(model)
    exact["loader"] = {**exact["loader"], "cache": False}  # cached features have 16 bits
    table = collect(model, **exact, split="test", references=2, limit=3, progress=False)
    assert len(table) == 6 and len(set(table.images)) == 3
    assert len(table.words) == table.starts[-1] == len(table.sites["cell.memory"])
    loaded = StateTable.load(table.save(tmp_path / "a.safetensors"))
    assert (loaded.images, loaded.reads) == (table.images, table.reads)
    assert (loaded.model["cell"], loaded.data["split"]) == ("LSTM", "test")
    known = next(n for n in range(6) if "<unk>" not in table.reads[n])
    image = next(i for i in model_images(model) if i.endswith(table.images[known]))
    trace = model.trace(image, caption=table.text(known), precision="fp32")
    assert trace.reads == loaded.reads[known]
    for site, values in loaded.sites.items():
        np.testing.assert_allclose(values[loaded.rows(known)], trace[site], atol=2e-5)


def groups(model: captioner.api.Captioner) -> dict:
    return {name: model.config[name] for name in ("data", "loader")}


def model_images(model: captioner.api.Captioner) -> list[str]:
    from captioner.data.read import read_records

    return [record.image for record in read_records(**model.config["data"]).records]


def test_generated_captions_are_those_of_the_model(run) -> None:
    model = captioner.load(run)
    table = collect(model, **groups(model), split="test", references=0, progress=False)
    images = [image for image in model_images(model) if "test_" in image]
    captions = list(model.caption(images))
    assert [reads[2:] for reads in table.reads] == [caption.words for caption in captions]


def test_the_words_of_a_unit_have_their_means_and_those_of_the_rest() -> None:
    table = planted(u={"red": 0.9, "fish": -0.5})
    found = top_words(table, 0, least=2)
    values, words = table.unit("cell.hidden", 0), table.words
    best, worst = found.positive[0], found.negative[0]
    assert (best.word, best.count, worst.word) == ("red", 3, "fish")
    assert best.mean == pytest.approx(0.9)
    assert best.rest == pytest.approx(values[words != "red"].mean())
    assert {word.word for word in found.positive} == {"a", "red", "fish", "<start>", "X_0"}
    assert str(found.highest[0]) == "X_0 <start> a [red] fish"
    assert [place.value for place in found.lowest[:3]] == pytest.approx([-0.5] * 3)


def test_a_place_with_the_same_beginning_is_shown_once() -> None:
    found = top_words(planted(u={"X_0": 1.0}), 0, count=2)
    assert [str(place)[:5] for place in found.highest] == ["[X_0]", *[str(found.highest[1])[:5]]]
    assert found.highest[1].value < 1.0


def test_a_phrase_is_described_by_the_units_that_are_on_during_it_alone() -> None:
    table = planted(
        during={"red": 0.8, "fish": 0.7},
        negative={"red": -0.9, "fish": -0.6},
        begun_before={"a": 0.9, "red": 0.9, "fish": 0.9},
        half={"red": 0.9},
    )
    phrase = find_phrase(table, "Red fish")
    assert (phrase.caption, phrase.first, phrase.last) == (0, 3, 4)
    found = search_phrase(table, phrase, threshold=0.5, share=1.0)
    assert (found.units, found.signs) == ((0, 1), (1, -1))
    assert [(str(match), match.value) for match in found.matches] == [
        ("X_0 <start> the [red fish]", 1.0),
        ("X_0 <start> a blue [fish] is left of a red boat", 1.0),
        ("X_0 <start> a blue fish is left of a [red] boat", 1.0),
    ]
    assert found.counts == [("red fish", 1), ("fish", 1), ("red", 1)]
    assert search_phrase(table, phrase, exactly=False).units == (0, 1, 2)


def test_matches_as_long_as_the_phrase_are_first() -> None:
    table = planted(u={"red": 0.9, "fish": 0.9}, v={"red": 0.9, "fish": 0.9, "blue": 0.9})
    found = search_phrase(table, find_phrase(table, "red fish"), share=0.5)
    spans = [" ".join(match.reads[match.first : match.last + 1]) for match in found.matches]
    assert spans == ["red fish", "blue fish", "red"]
    assert [match.value for match in found.matches] == [1.0, 0.75, 1.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"phrase": "fish red"}, "no caption of the table has these words"),
        ({"phrase": "red fish", "caption": 1}, r"caption 1 \('a blue fish is .*does not have"),
        ({"phrase": "red fish", "caption": 4}, "caption=4 is not accepted; choose 0 to 3"),
        ({"phrase": "is left"}, "no unit is on during the whole of 'is left'; the largest .* 0.01"),
    ],
)
def test_a_phrase_that_is_not_there_is_refused(arguments, says) -> None:
    table = planted(u={"red": 0.9})
    with pytest.raises(ValueError, match=says):
        search_phrase(table, find_phrase(table, **arguments))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"site": "cell.memori"}, "site='cell.memori' is not known; choose cell.hidden"),
        ({"layer": 1}, "layer=1 is not accepted; choose 0 to 0"),
        ({"threshold": 0.0}, "threshold=0.0 is not accepted"),
        ({"share": 1.5}, "share=1.5 is not accepted"),
    ],
)
def test_what_the_table_does_not_have_is_refused(change, says) -> None:
    table = planted(u={"red": 0.9})
    with pytest.raises(ValueError, match=says):
        search_phrase(table, find_phrase(table, "red"), **change)
    with pytest.raises(ValueError, match="unit=1 is not accepted; choose 0 to 0"):
        top_words(table, 1)


def test_other_files_are_no_tables(tmp_path) -> None:
    from captioner.tracing.array_file import ArrayFile

    text, other = tmp_path / "a.txt", tmp_path / "trace.safetensors"
    text.write_text("a red fish")
    ArrayFile("captioner.trace", "a trace", 1).write(other, {}, {"x": np.zeros(2)})
    newer = ArrayFile("captioner.states", "", 2).write(tmp_path / "b.safetensors", {}, {})
    for path, says in (
        (text, "is not a table of states"),
        (other, "but not a table of states"),
        (newer, "of format 2, written by captioner"),
    ):
        with pytest.raises(ValueError, match=says):
            StateTable.load(path)
    with pytest.raises(ValueError, match="but not a table of states"):
        planted(u={}).save(other)
