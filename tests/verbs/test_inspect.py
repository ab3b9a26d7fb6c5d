"""captioner inspect: what it prints, and what it refuses."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

import captioner
from captioner.cli import main
from captioner.tracing.trace import Trace


@pytest.fixture(scope="module")
def photo(scenes: Path) -> str:
    return str(sorted((scenes / "images").glob("test_*.png"))[0])


@pytest.fixture(scope="module")
def caption(run, photo):
    return captioner.load(run).caption(photo)


def inspect(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_table_has_a_row_per_step(run, photo, caption, capsys) -> None:
    title, headings, *rows = inspect(capsys, photo, "--model", run).splitlines()
    steps = len(caption.log_probs)
    assert title.startswith(caption.text)
    assert headings.split("\t") == ["step", "reads", "gives", "p", "p(<end>)", "alternatives"]
    assert rows[0].split("\t")[1:3] == ["<start>", caption.words[0]]
    assert rows[steps].split("\t") == ["step", "reads", *"fio", "|kept|", "|written|", "|h|"]
    assert [row.split("\t")[1] for row in rows[steps + 1 :]][:2] == ["X_0", "<start>"]
    assert len(rows) == 2 * steps + 2
    for row, log_prob in zip(rows, caption.log_probs):
        assert float(row.split("\t")[3].rstrip("%")) == pytest.approx(
            100 * math.exp(log_prob), abs=0.06
        )


def test_json_and_a_saved_trace_have_the_caption(run, photo, caption, capsys, tmp_path) -> None:
    saved = tmp_path / "trace.safetensors"
    printed = json.loads(inspect(capsys, photo, "--model", run, "--json", "--save", saved))
    assert printed["text"] == Trace.load(saved).text == caption.text
    assert printed["log_probs"] == list(caption.log_probs)


def test_hypotheses_of_a_beam_are_printed_as_well(run, photo, capsys) -> None:
    printed = inspect(capsys, photo, "--model", run, "--beam-size", 3, "--hypotheses")
    assert printed.count("X_0") >= 2


def test_an_edit_is_shown_beside_the_unedited_caption(
    run, photo, caption, capsys, tmp_path
) -> None:
    edits = tmp_path / "edits.json"
    edits.write_text('[{"edit": "zero", "site": "cell.memory"}]')
    printed = inspect(capsys, photo, "--model", run, "--edits", edits, "--edit", "reset=2")
    assert f"without edits: {caption.text}" in printed


def test_equations_are_printed(run, photo, capsys) -> None:
    printed = inspect(capsys, photo, "--model", run, "--equations", "--step", 1, "--unit", 3)
    assert "f_1  = σ(W_f [h_0, x_1] + b_f) = σ(" in printed
    assert "C_1  = f_1 * C_0 + i_1 * C~_1 = " in printed
    as_json = inspect(capsys, photo, "--model", run, "--equations", "--json")
    assert [line["left"] for line in json.loads(as_json)][:2] == ["f_1", "i_1"]


def test_patching_and_dependence_have_a_row_per_word(run, photo, caption, scenes, capsys) -> None:
    other = sorted((scenes / "images").glob("test_*.png"))[1]
    words = len(caption.log_probs)
    _, headings, *rows = inspect(capsys, photo, "--model", run, "--patch", other).splitlines()
    assert headings == "word\tlog p\tX_0\th\tC"
    assert len(rows) == words
    printed = json.loads(inspect(capsys, photo, "--model", run, "--dependence", "--json"))
    assert len(printed["kl"]) == words


def test_the_lens_has_a_row_per_step_and_h_gives_what_the_table_gives(run, photo, capsys) -> None:
    flags = (photo, "--model", run, "--precision", "fp32")
    text, _, headings, *rows = inspect(capsys, *flags, "--lens").splitlines()
    assert headings == "step\treads\tgives\th\tC"
    assert rows[0].split("\t")[1:3] == ["X_0", ""]
    printed, found = (
        json.loads(inspect(capsys, *flags, *more, "--json")) for more in ((), ("--lens",))
    )
    assert found["text"] == printed["text"] == text
    assert len(rows) == len(found["reads"]) == len(printed["words"]) + 1
    for own, other in zip(found["lens"]["h"][1:], printed["alternatives"]):
        assert [word for word, _ in own] == [word for word, _ in other]
        assert [p for _, p in own] == pytest.approx([p for _, p in other], abs=1e-5)


def test_lens_and_attribution_are_those_of_an_edited_run(run, photo, caption, capsys) -> None:
    flags = (photo, "--model", run, "--precision", "fp32", "--edit", "reset=2")
    edited = json.loads(inspect(capsys, *flags, "--json"))
    found = json.loads(inspect(capsys, *flags, "--lens", "--json"))
    assert edited["text"] == found["text"]
    for own, other in zip(found["lens"]["h"][1:], edited["alternatives"]):
        assert [p for _, p in own] == pytest.approx([p for _, p in other], abs=1e-5)
    of_words = json.loads(inspect(capsys, *flags, "--attribute", "occlusion", "--json"))
    assert [one["word"] for one in of_words] == edited["words"]
    third = of_words[2]  # nothing is left of X_0 and of the first two words
    assert third["map"] == pytest.approx([0] * len(third["map"]), abs=1e-9)
    assert third["words"][:2] == pytest.approx([0, 0], abs=1e-9)
    assert abs(third["words"][2]) > 1e-3
    for more in (["--lens"], ["--attribute", "occlusion"]):
        printed = inspect(capsys, *flags, *more).splitlines()
        assert printed[0].startswith(f"without edits: {caption.text}")
        assert printed[1] == edited["text"]
    assert main(["inspect", *map(str, flags), "--lens", "--edit", "cell.memory@99=0"]) == 0
    assert "--edit cell.memory@99=0 has no effect" in capsys.readouterr().err


def test_sites_are_listed(run, capsys) -> None:
    printed = inspect(capsys, "--sites", "--model", run)
    assert "cell.forget_gate" in printed
    assert "X_0, the projected feature" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "PHOTO is missing"),
        (["PHOTO", "--edit", "cell.memory"], 1, "write SITE"),
        (["PHOTO", "--edit", "cell.memori=0"], 1, "did you mean cell.memory"),
        (["PHOTO", "--edit", "image.x0=from:none.jpg"], 1, "none.jpg"),
        (["PHOTO", "--edits", "PHOTO"], 1, "is not JSON"),
        (["PHOTO", "--equations", "--unit", "9999"], 1, "unit=9999 is not accepted"),
        (["PHOTO", "--equations", "--sites"], 2, "cannot be combined"),
        (["PHOTO", "--caption", "a quokka"], 1, "'quokka', which is not"),
        (["none.jpg"], 1, "none.jpg"),
        (["PHOTO", "--output", "PHOTO"], 1, "is read by this command"),
        (["PHOTO", "--save", "PHOTO"], 1, "is read by this command"),
        (["PHOTO", "--output", "setup.cfg"], 1, "exists, and only a file that ends in .html"),
        (["PHOTO", "--edit", "cell.memory=nan"], 1, "give a finite number"),
        (["PHOTO", "--edit", "cell.kept=0"], 1, "is read only; edit cell.memory or a gate"),
        (["PHOTO", "--step", "2"], 2, "--step belongs to --equations"),
        (["PHOTO", "--patch", "PHOTO", "--output", "a.html"], 2, "--output is the page"),
        (["PHOTO", "--dependence", "--save", "a.safetensors"], 2, "--save writes the trace"),
        (["PHOTO", "PHOTO"], 2, "2 photographs; give one"),
        (["PHOTO", "--dependence", "--edit", "reset=2"], 2, "--dependence takes no --edit"),
        (["PHOTO", "--attribute", "--edit", "image.x0=0"], 1, "replaces all that is read of the"),
    ],
)
def test_mistakes_are_told_in_one_line(run, photo, arguments, status, says, capsys) -> None:
    given = [photo if argument == "PHOTO" else argument for argument in arguments]
    try:
        assert main(["inspect", *given, "--model", str(run)]) == status
    except SystemExit as leaving:
        assert leaving.code == status
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_attribution_has_a_row_per_word_and_its_checks(run, photo, caption, capsys) -> None:
    printed = inspect(capsys, photo, "--model", run, "--attribute", "occlusion").splitlines()
    assert printed[:2] == [caption.text, "occlusion of the logit"]
    assert [row.split("\t")[0] for row in printed[3:]] == [*caption.words, "<end>"]
    for row in printed[3:]:
        _, f, baseline, image, words, error, _ = row.split("\t")
        total = float(image) + float(words) - (float(f) - float(baseline))
        assert float(error) == pytest.approx(total, abs=0.03)

    arguments = (photo, "--model", run, "--attribute", "--word", 2, "--rather-than", "a")
    printed = inspect(capsys, *arguments)
    assert f"the logit, less that of a: {caption.words[1]}" in printed
    assert "completeness error" in printed and "random weights" in printed
    [found] = json.loads(inspect(capsys, *arguments, "--json"))
    assert found["reads"] == ["<start>", caption.words[0]]
    assert sum(found["map"]) + sum(found["words"]) == pytest.approx(
        found["value"] - found["baseline"], abs=0.05
    )
    assert found["checks"]["error"] == found["error"]
    same = [*map(str, arguments[:-1]), caption.words[1]]
    assert main(["inspect", *same]) == 1
    assert "is the word itself" in capsys.readouterr().err


def test_a_wrong_edit_in_a_file_is_told_with_its_file(run, photo, tmp_path, capsys) -> None:
    edits = tmp_path / "edits.json"
    edits.write_text('[{"edit": "set", "site": "cell.memory", "value": "much"}]')
    assert main(["inspect", photo, "--model", str(run), "--edits", str(edits)]) == 1
    assert f"{edits}: " in capsys.readouterr().err


def test_flags_of_attribution_that_mean_nothing_are_refused(run, photo, capsys) -> None:
    for arguments, message in (
        (["--word", "2"], "belong to --attribute"),
        (["--attribute", "--word", "99"], "word=99 is not accepted"),
        (["--attribute", "lpr"], "did you mean lrp"),
        (["--attribute", "--rather-than", "zebra"], "cannot generate 'zebra'"),
        (["--attribute", "--dependence"], "cannot be combined"),
    ):
        with contextlib.suppress(SystemExit):
            assert main(["inspect", photo, "--model", str(run), *arguments]) != 0
        assert message in capsys.readouterr().err


def test_a_model_is_not_replaced_by_a_trace(run, photo, tmp_path, capsys) -> None:
    from safetensors.numpy import save_file

    weights = tmp_path / "weights.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, weights)
    before = weights.read_bytes()
    assert main(["inspect", photo, "--model", str(run), "--save", str(weights)]) == 1
    assert "but not a trace" in capsys.readouterr().err
    assert weights.read_bytes() == before
