"""`captioner compare`: which evaluations it accepts, and which it refuses."""

import os
import time
from pathlib import Path

import numpy
import pytest
from support.comparisons import QUICK, as_json, compared, fails
from support.evaluations import evaluation, system

from captioner.cli import main
from captioner.evaluation.results import read_result
from captioner.metrics.statistics import Statistics

# Which evaluation -----------------------------------------------------------------------------


def test_the_newest_or_the_selected_evaluation_is_used(tmp_path, capsys) -> None:
    run = evaluation(tmp_path / "run", system(1), split="test", decoding="beam3")
    evaluation(run, system(2), split="dev")
    evaluation(run, system(3), split="test")
    folder = run / "evaluation"
    os.utime(folder / "toys-dev" / "greedy" / "scores.json", (time.time() + 60,) * 2)
    assert read_result(run).folder == folder / "toys-dev" / "greedy"
    assert read_result(run, decoding="beam3").folder == folder / "toys-test" / "beam3"
    beam, greedy = (folder / "toys-test" / decoding for decoding in ("beam3", "greedy"))
    assert read_result(beam).folder == read_result(beam / "scores.json").folder == beam
    content = as_json(capsys, greedy, beam)
    assert list(content["systems"]) == ["run greedy", "run beam3"]
    assert content["warnings"][0].startswith(
        "decoding differs (greedy: run greedy; beam3: run beam3)"
    )
    content = as_json(capsys, greedy, beam, evaluation(tmp_path / "b", system(4), split="test"))
    assert "(greedy: run greedy, b greedy; beam3: run beam3)" in content["warnings"][0]
    fails(capsys, run, "--split", "train", says="--split train")
    fails(capsys, run, "--decoding", "beam9", says="only toys-dev/greedy, toys-test/beam3")


def test_ensembles_are_not_grouped_with_runs(seeds, capsys) -> None:
    first, second, _ = seeds["rnn"]
    evaluation(first, system(5), label="greedy@ensemble3-abc123")
    assert read_result(first).folder.name == "greedy"
    ensemble = first / "evaluation" / "toys-dev" / "greedy@ensemble3-abc123"
    content = as_json(capsys, first, second, ensemble)
    assert list(content["systems"]) == ["rnn (2 seeds)", "rnn-seed1 greedy@ensemble3-abc123"]
    assert content["warnings"] == []


@pytest.mark.parametrize(
    "field, value, name",
    [
        ("split", "test", "split"),
        ("tokenization", "character", "tok"),
        ("references_per_image", "4", "refs"),
        ("images", "0", "images"),
        ("data", "x", "data"),
    ],
)
def test_systems_that_are_not_comparable_are_refused_or_warned_about(
    field, value, name, tmp_path, capsys
) -> None:
    first = evaluation(tmp_path / "a", system(1))
    second = evaluation(tmp_path / "b", system(2), **{field: value})
    fails(capsys, first, second, says=f"cannot be compared: {name} ")
    for form in ("text", "markdown", "json"):
        assert main(["compare", f"{first}", f"{second}", "--anyway", *QUICK, "--format", form]) == 0
        text = capsys.readouterr().out
        assert f"{name} differs (" in text
        assert "warning" in text.lower()


def test_other_references_are_refused_even_if_everything_else_is_equal(tmp_path, capsys) -> None:
    first = evaluation(tmp_path / "a", system(1), references="aaaaaaaa")
    same = evaluation(tmp_path / "b", system(2), references="aaaaaaaa", data="a-copy")
    different = evaluation(tmp_path / "c", system(3), references="cccccccc")
    older = evaluation(tmp_path / "d", system(4))
    message = "cannot be compared: references aaaaaaaa and cccccccc; "
    fails(capsys, first, different, says=message)
    fails(capsys, older, first, different, says=message)
    fails(capsys, f"{first},{different}", same, says=message)
    content = as_json(capsys, first, different, "--anyway")
    assert any("references differs (aaaaaaaa: a; cccccccc: c)" in w for w in content["warnings"])
    content = as_json(capsys, first, same)
    assert content["warnings"] == []
    assert not any("could not be checked" in note for note in content["notes"])


def test_results_without_reference_hash_are_compared_with_a_note(tmp_path, capsys) -> None:
    older = evaluation(tmp_path / "old", system(1))
    newer = evaluation(tmp_path / "new", system(2), references="aaaaaaaa", data="toys-mine.csv")
    for pair in ((older, newer), (newer, older)):
        content = as_json(capsys, *pair)
        assert content["warnings"] == []
        assert any("the signature of old is older" in note for note in content["notes"])


def test_results_with_only_signature_texts_are_compared_like_those_with_fields(
    tmp_path, capsys
) -> None:
    newer = evaluation(tmp_path / "new", system(1), references="aaaaaaaa")
    older = evaluation(tmp_path / "old", system(2), references="aaaaaaaa", old=True)
    content = as_json(capsys, newer, older)
    assert content["warnings"] == []
    assert not any("could not be checked" in note for note in content["notes"])
    different = evaluation(tmp_path / "other", system(2), references="bbbbbbbb", old=True)
    fails(capsys, newer, different, says="cannot be compared: references aaaaaaaa and bbbbbbbb")


def test_unknown_metrics_are_the_first_error(tmp_path, capsys) -> None:
    first = evaluation(tmp_path / "a", system(1))
    second = evaluation(tmp_path / "b", system(2), tokenization="character")
    fails(capsys, first, second, "--metrics", "foo", says="metrics='foo' is not known")


def test_other_images_are_refused_or_common_images_are_compared(tmp_path, capsys) -> None:
    statistics = system(1)
    names = (*statistics.images[:150], *(f"other-{index}" for index in range(50)))
    first = evaluation(tmp_path / "a", statistics)
    second = evaluation(tmp_path / "b", Statistics(names, system(2).rows))
    fails(capsys, first, second, says="not of the same images")
    content = as_json(capsys, first, second, "--anyway")
    assert content["images"] == 150
    assert "scored on the 150 images that all systems have, of up to 200" in content["warnings"]
    shared = {name: rows[:150] for name, rows in statistics.rows.items()}
    expected = Statistics(statistics.images[:150], shared).scores()["BLEU-4"]
    [score] = [r["score"] for r in content["rows"] if (r["metric"], r["system"]) == ("BLEU-4", "a")]
    assert score == pytest.approx(expected)
    alone = evaluation(tmp_path / "c", Statistics(tuple(map(str, range(200))), statistics.rows))
    fails(capsys, first, alone, "--anyway", says="0 images are common to all")


def test_the_order_of_images_does_not_matter(tmp_path) -> None:
    first, second = system(1), system(2, skill=0.1)
    order = numpy.random.default_rng(0).permutation(200)
    shuffled = Statistics(
        tuple(second.images[index] for index in order),
        {name: rows[order] for name, rows in second.rows.items()},
    )
    plain = evaluation(tmp_path / "1" / "b", second)
    mixed = evaluation(tmp_path / "2" / "b", shuffled)
    base = evaluation(tmp_path / "a", first)
    for row, mixed_row in zip(compared(base, plain).rows, compared(base, mixed).rows):
        assert row == mixed_row


# Wrong inputs ---------------------------------------------------------------------------------


def test_wrong_inputs_get_one_line(runs, tmp_path, capsys) -> None:
    first, second = runs["first"], runs["like"]
    (tmp_path / "bare").mkdir()
    fails(capsys, tmp_path / "gone", says="no such run folder")
    fails(capsys, tmp_path / "bare", says="bare: not a run: it has neither checkpoints nor evalua")
    trained = tmp_path / "trained"
    (trained / "checkpoints").mkdir(parents=True)
    (trained / "checkpoints" / "last.ckpt").write_bytes(b"")
    fails(capsys, trained, says=f"make one with: captioner evaluate {trained}")
    fails(capsys, first, second, first, says="given twice")
    fails(capsys, first, second, "--metrics", "BLEU-9", says="did you mean BLEU-")
    fails(capsys, first, "--seed", -1, says="seed=-1 is negative")
    fails(capsys, first, "--figure", "table.gif", says="name it .svg or .png")
    fails(capsys, f"{first},", says="a comma without a path next to it")
    assert main(["compare", str(first), str(second), "--resamples", "150"]) == 1
    assert "resamples=150 cannot show anything in 5 tests" in capsys.readouterr().err


@pytest.mark.reliability("damaged files")
def test_damaged_files_get_one_line(tmp_path, capsys) -> None:
    runs = [evaluation(tmp_path / str(index), system(index)) for index in range(5)]
    folders = [run / "evaluation" / "toys-dev" / "greedy" for run in runs]
    content = (folders[0] / "statistics.npz").read_bytes()
    middle = len(content) // 2
    for damaged in (b"", content[:100], content[:middle], b"PK" + content[:50]):
        (folders[0] / "statistics.npz").write_bytes(damaged)
        fails(capsys, runs[0], says="captioner evaluate again")
    for place in range(0, len(content), max(1, len(content) // 150)):
        flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        (folders[0] / "statistics.npz").write_bytes(flipped)
        status = main(["compare", str(runs[0]), "--resamples", "100"])
        out, error = capsys.readouterr()
        assert (status == 0 and out) or error.count("\n") == 1
    (folders[1] / "statistics.npz").unlink()
    fails(capsys, runs[1], says="has no statistics.npz")
    (folders[2] / "scores.json").write_text('{"BLEU-4": 19.2, "signature": "BLEU|tok:ptb"}')
    fails(capsys, runs[2], says="damaged, or of an older version")
    system(77).save(folders[3] / "statistics.npz")
    fails(capsys, runs[3], says="statistics.npz gives BLEU-1")
    (runs[4] / "config.yaml").write_text("a: [")
    fails(capsys, runs[4], says="not valid YAML")


@pytest.mark.reliability("files decide nothing")
def test_an_object_in_the_statistics_is_not_unpickled(tmp_path, capsys) -> None:
    run = evaluation(tmp_path / "run", system(1))
    file = run / "evaluation" / "toys-dev" / "greedy" / "statistics.npz"
    numpy.savez(file, images=numpy.array([{}], dtype=object), cider_d=numpy.ones((1, 1)))
    fails(capsys, run, says="captioner evaluate again")


def test_one_reference_is_singular_and_a_new_folder_is_named(tmp_path, monkeypatch, capsys) -> None:
    runs = [str(evaluation(tmp_path / name, system(3), references_per_image="1")) for name in "ab"]
    current, elsewhere = tmp_path / "here", tmp_path / "away"
    current.mkdir()
    monkeypatch.chdir(current)
    for output, message in (
        (
            elsewhere / "deep" / "t.md",
            f"wrote {elsewhere}/deep/t.md (made the folder {elsewhere})\n",
        ),
        (elsewhere / "t.md", f"wrote {elsewhere}/t.md\n"),
        (Path("tables/t.md"), "wrote tables/t.md\n"),
        (
            Path("../there/t.md"),
            f"wrote ../there/t.md (made the folder {tmp_path}/there)\n",
        ),
    ):
        assert main(["compare", *runs, *QUICK, "--output", str(output)]) == 0
        assert capsys.readouterr().err == message
        assert "200 images, 1 reference;" in output.read_text()


def test_an_unknown_split_is_refused_with_a_list_of_splits(runs, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(runs["first"]), "--split", "val"])
    assert "train" in capsys.readouterr().err
