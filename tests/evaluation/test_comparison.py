"""`captioner compare`: what it finds, groups, refuses, and says."""

import json
import os
import sys
import time
import xml.etree.ElementTree as xml
from itertools import product
from pathlib import Path

import numpy
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.cells import cell_len
from support.evaluations import evaluation, system

from captioner.cli import main
from captioner.evaluation import comparison_figure, fonts
from captioner.evaluation.comparison import (
    HIGHER,
    LOWER,
    TOO_FEW,
    UNDECIDED,
    Comparison,
    compare,
)
from captioner.evaluation.comparison_tables import as_text
from captioner.evaluation.results import read_result, read_systems
from captioner.metrics.significance import (
    ALPHA,
    OverSeeds,
    bootstrap,
    fewest_images,
    holm,
    smallest_p,
)
from captioner.metrics.statistics import Statistics

QUICK = ("--resamples", "1000")


def fails(capsys: pytest.CaptureFixture, *argv: object, says: str) -> None:
    """The command ends with status 1 and one line on standard error."""
    assert main(["compare", *map(str, argv), *QUICK]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1, error
    assert says in error


def as_json(capsys: pytest.CaptureFixture, *argv: object) -> dict:
    assert main(["compare", *map(str, argv), *QUICK, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def compared(*paths: Path, **options) -> Comparison:
    systems = read_systems([str(path) for path in paths])
    return compare(systems, **{"resamples": 1000, **options})


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Runs of one training each: like the first, much better, much worse."""
    skills = {"first": 0.0, "like": 0.0, "better": 0.5, "worse": -0.5}
    return {
        name: evaluation(tmp_path / name, system(index, skill=skill))
        for index, (name, skill) in enumerate(skills.items())
    }


@pytest.fixture
def seeds(tmp_path: Path) -> dict[str, list[Path]]:
    """Two configurations of three seeds each, whose config.yaml differ in the cell."""
    found: dict[str, list[Path]] = {}
    for cell, skill in (("rnn", 0.0), ("lstm", 0.5)):
        for seed in (1, 2, 3):
            run = tmp_path / f"{cell}-seed{seed}"
            config = {"seed": seed, "run_dir": str(run), "decoder": {"cell": cell, "layers": 1}}
            scored = system(10 * seed + len(cell), skill=skill + 0.02 * seed)
            found.setdefault(cell, []).append(evaluation(run, scored, config=config))
    return found


# What it says ---------------------------------------------------------------------------------


def test_verdicts_follow_what_is_true(runs) -> None:
    table = compared(*runs.values())
    found = {(row.metric, row.system): row.difference for row in table.rows}
    for metric in ("BLEU-1", "BLEU-4", "CIDEr-D"):
        assert found[metric, "first"] is None
        assert found[metric, "like"].verdict == UNDECIDED
        assert found[metric, "better"].verdict == HIGHER
        assert found[metric, "worse"].verdict == LOWER
    assert table.tests == 3 * 5


def test_rows_hold_the_scores_and_differences_of_the_files(runs) -> None:
    table = compared(*runs.values())
    scores = {name: read_result(run).scores for name, run in runs.items()}
    for row in table.rows:
        assert row.score == pytest.approx(scores[row.system][row.metric])
        if row.difference:
            expected = scores[row.system][row.metric] - scores["first"][row.metric]
            assert row.difference.value == pytest.approx(expected)
            low, high = row.difference.interval
            assert low < expected < high


def test_what_is_called_a_difference_fits_what_could_have_been_shown(tmp_path) -> None:
    for index in range(12):
        evaluation(tmp_path / f"run{index}", system(index, skill=0.05 * index))
    verdicts = set()
    for row in compared(*sorted(tmp_path.iterdir()), resamples=4000).rows:
        if row.difference:
            verdicts.add(row.difference.verdict)
            if abs(row.difference.value) > 1.15 * row.difference.shown_from:
                assert row.difference.verdict != UNDECIDED
            if abs(row.difference.value) < 0.5 * row.difference.shown_from:
                assert row.difference.verdict == UNDECIDED
    assert verdicts == {HIGHER, UNDECIDED}


def test_p_are_corrected_over_the_whole_table(runs) -> None:
    few = compared(runs["first"], runs["like"], metrics=["BLEU-4"])
    [difference] = [row.difference for row in few.rows if row.difference]
    assert difference.corrected["randomised"] == difference.p_randomised
    many = compared(*runs.values())
    differences = [row.difference for row in many.rows if row.difference]
    smallest = min(d.p_randomised for d in differences)
    assert min(d.corrected["randomised"] for d in differences) == pytest.approx(15 * smallest)


def test_metrics_without_rows_have_no_interval_and_a_reason(runs, capsys) -> None:
    table = compared(runs["first"], runs["like"])
    rows = [row for row in table.rows if row.metric == "distinct-2"]
    assert [(row.score, row.interval, row.difference) for row in rows] == [(3.5, None, None)] * 2
    assert main(["compare", str(runs["first"]), *QUICK]) == 0
    assert "distinct-2 has no interval: it is of all captions together" in capsys.readouterr().out


def test_one_run_alone_has_intervals(runs, capsys) -> None:
    assert main(["compare", str(runs["first"]), *QUICK]) == 0
    text = capsys.readouterr().out
    assert "95 % interval" in text
    assert "verdict" not in text
    assert all(row["interval"] for row in as_json(capsys, runs["first"])["rows"][:-1])


def test_text_and_markdown_say_the_same(runs, tmp_path, capsys) -> None:
    paths = [str(runs["first"]), str(runs["better"])]
    assert main(["compare", *paths, *QUICK]) == 0
    text = capsys.readouterr().out
    file = tmp_path / "table.md"
    arguments = ["--format", "markdown", "--output", str(file)]
    assert main(["compare", *paths, *QUICK, *arguments]) == 0
    out, error = capsys.readouterr()
    assert (out, error) == ("", f"wrote {file}\n")
    table = [line for line in file.read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    lines = [line.split() for line in text.splitlines()]
    for line in cells[2:]:
        assert " ".join(line).split() in lines


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_table_wider_than_the_terminal_is_folded(width: int, runs) -> None:
    table = compared(*runs.values())
    whole, folded = as_text(table), as_text(table, width=width)
    lines = [line for line in folded.splitlines() if not line.startswith(("- sig", "  tok:"))]
    assert max(map(len, lines)) <= width or width == 40  # two names and an interval need 45
    assert folded.count("verdict") >= 1 and folded.count("metric") > whole.count("metric")
    said = ({word for word in text.split() if set(word) != {"-"}} for text in (whole, folded))
    assert next(said) == next(said)


def test_columns_stand_below_each_other_in_any_script(tmp_path, capsys) -> None:
    for index, name in enumerate(("基线模型", "b")):
        evaluation(tmp_path / name, system(index))
    paths = [str(tmp_path / name) for name in ("基线模型", "b")]
    assert main(["compare", *paths, *QUICK, "--metrics", "CIDEr-D"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "[" in line and ", " in line]
    assert len(lines) == 2
    assert len({cell_len(line[: line.index("[")]) for line in lines}) == 1


def test_the_same_seed_gives_the_same_table(runs, capsys) -> None:
    first = as_json(capsys, *runs.values())
    assert as_json(capsys, *runs.values()) == first
    assert as_json(capsys, *runs.values(), "--seed", 2) != first


def test_where_nothing_varies_nothing_is_claimed(tmp_path) -> None:
    names = tuple(map(str, range(30)))
    for name in ("a", "b"):
        rows = numpy.hstack([numpy.zeros((30, 4)), numpy.full((30, 6), 5.0)])
        evaluation(tmp_path / name, Statistics(names, {"bleu": rows}))
    [*_, row] = [row for row in compared(tmp_path / "a", tmp_path / "b").rows if row.difference]
    assert (row.difference.value, row.difference.shown_from) == (0.0, None)
    assert row.difference.verdict == UNDECIDED


def smallest_p_by_all_swaps(first: Statistics, other: Statistics) -> float:
    """The p of approximate randomisation over every one of the 2^n swaps, of CIDEr-D."""
    a, b = (one.rows["cider_d"][:, 0] for one in (first, other))
    signs = list(product((1, -1), repeat=len(a)))
    found = [abs(numpy.mean(numpy.array(one) * (b - a))) for one in signs]
    return sum(value >= found[0] - 1e-12 for value in found) / len(signs)


@pytest.mark.parametrize("images", [2, 3, 5, 8])
def test_no_test_over_images_falls_below_the_smallest_p(images: int) -> None:
    first, far = system(1, n=images), system(2, n=images, skill=9.0)
    assert smallest_p_by_all_swaps(first, far) == smallest_p(images)


@pytest.mark.parametrize("tests", [1, 2, 5, 15, 40])
def test_the_fewest_images_are_those_from_which_on_a_test_can_show_one(tests: int) -> None:
    least = fewest_images(tests)
    assert min(holm([smallest_p(least)] * tests)) < ALPHA
    assert min(holm([smallest_p(least - 1)] * tests)) >= ALPHA


def test_so_few_images_cannot_show_a_difference_and_the_table_says_so(tmp_path, capsys) -> None:
    for name, skill in (("a", 0.0), ("b", 9.0)):
        evaluation(tmp_path / name, system(len(name), n=3, skill=skill))
    table = compared(tmp_path / "a", tmp_path / "b")
    differences = [row.difference for row in table.rows if row.difference]
    assert {one.verdict for one in differences} == {TOO_FEW}
    assert {one.shown_from for one in differences} == {None}
    paths = [str(tmp_path / name) for name in "ab"]
    for form in ("text", "markdown", "json"):
        assert main(["compare", *paths, *QUICK, "--format", form]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "3 images are too few to show any difference" in said
        assert "evaluate 8 images or more" in said
        assert "no difference shown" not in said and "rough" in said
    for name in "ab":
        evaluation(tmp_path / f"{name}9", system(ord(name), n=8, skill=9.0 * (name == "b")))
    assert HIGHER in {
        row.difference.verdict
        for row in compared(tmp_path / "a9", tmp_path / "b9").rows
        if row.difference
    }


@pytest.mark.parametrize(
    "metrics, shown",
    [
        ("bleu", ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]),
        ("bleu-4", ["BLEU-4"]),
        ("cider_d, BLEU4", ["BLEU-4", "CIDEr-D"]),
        ("CIDEr-D", ["CIDEr-D"]),
        ("Diversity", ["distinct-2"]),
    ],
)
def test_metrics_are_named_as_evaluate_and_people_name_them(metrics, shown, runs, capsys) -> None:
    found = as_json(capsys, runs["first"], runs["like"], "--metrics", metrics)
    assert list(dict.fromkeys(row["metric"] for row in found["rows"])) == shown


def test_of_a_sweep_only_what_was_evaluated_is_compared(tmp_path, capsys) -> None:
    sweep = tmp_path / "sweep # 1"
    for index, cell in enumerate(("rnn", "gru")):
        evaluation(sweep / f"{index}_decoder.cell={cell}", system(index))
    (sweep / "2_decoder.cell=lstm" / "logs").mkdir(parents=True)
    (sweep / "multirun.yaml").write_text("hydra: {}")
    (sweep / "optimization_results.yaml").write_text("name: optuna")
    found = as_json(capsys, *sorted(sweep.iterdir()))
    assert list(found["systems"]) == ["0_decoder.cell=rnn", "1_decoder.cell=gru"]
    assert {
        "skipped 2 (no run): multirun.yaml, optimization_results.yaml",
        "skipped 1 (a job of the sweep without an evaluation): 2_decoder.cell=lstm",
    } <= set(found["notes"])
    fails(capsys, sweep, says="a sweep of several runs, not a run")
    fails(capsys, sweep / "2_decoder.cell=lstm", says="nothing to compare: skipped 1 (a job")
    fails(capsys, sweep / "multirun.yaml", says="nothing to compare: skipped 1 (no run)")


# Seeds ----------------------------------------------------------------------------------------


def test_seeds_of_a_configuration_become_one_system(seeds, capsys) -> None:
    paths = [*seeds["rnn"], *seeds["lstm"]]
    found = as_json(capsys, *paths)
    assert list(found["systems"]) == ["rnn (3 seeds)", "lstm (3 seeds)"]
    joined = (",".join(map(str, seeds[cell])) for cell in ("rnn", "lstm"))
    assert as_json(capsys, *joined) == found
    assert len(as_json(capsys, *paths, "--no-group")["systems"]) == 6
    assert main(["compare", *map(str, paths), *QUICK]) == 0
    text = capsys.readouterr().out
    assert "rnn-seed1 (seed 1), rnn-seed2 (seed 2)" in text
    assert "Over training seeds" in text


def test_seeds_may_start_from_the_run_of_their_own_seed(tmp_path, capsys) -> None:
    for name, started in (("own", (1, 2)), ("other", (1, 1))):
        for seed, start in zip((1, 2), started):
            config = {"seed": seed, "resume_weights": f"runs/{name}-10-seed{start}"}
            evaluation(tmp_path / f"{name}{seed}", system(seed), config=config)
    found = as_json(capsys, *(tmp_path / name for name in ("own1", "own2", "other1", "other2")))
    assert list(found["systems"]) == ["own (2 seeds)", "other1", "other2"]


def test_a_group_has_the_mean_and_spread_of_its_seeds(seeds) -> None:
    table = compared(*seeds["rnn"], *seeds["lstm"])
    results = {cell: [read_result(run) for run in runs] for cell, runs in seeds.items()}
    for metric in ("BLEU-4", "CIDEr-D"):
        first, other = [row for row in table.rows if row.metric == metric]
        scores = {c: [r.scores[metric] for r in found] for c, found in results.items()}
        assert first.seeds == pytest.approx(scores["rnn"])
        assert other.score == pytest.approx(numpy.mean(scores["lstm"]))
        assert other.deviation == pytest.approx(numpy.std(scores["lstm"], ddof=1))
        groups = [[r.statistics for r in found] for found in results.values()]
        resampled = bootstrap(groups, resamples=1000)[metric]
        expected = OverSeeds.of(resampled[1] - resampled[0], scores["rnn"], scores["lstm"])
        assert other.difference.p_seeds == pytest.approx(max(expected.p(), 1 / 1001))
        assert other.difference.interval_seeds == pytest.approx(expected.interval())


def test_seeds_that_scatter_take_a_verdict_back(tmp_path) -> None:
    for name, skills in (("a", (0.0, 0.0, 0.0)), ("b", (-0.3, 0.3, 0.9))):
        for seed, skill in enumerate(skills):
            config = {"seed": seed, "decoder": {"cell": name}}
            evaluation(tmp_path / f"{name}{seed}", system(seed, skill=skill), config=config)
    table = compared(*sorted(tmp_path.iterdir()))
    [row] = [row for row in table.rows if row.difference and row.metric == "CIDEr-D"]
    assert row.difference.corrected["randomised"] < 0.05
    assert row.difference.interval[0] > 0
    assert row.difference.verdict == UNDECIDED
    assert row.difference.interval_seeds[0] < 0


def test_a_configuration_with_one_seed_twice_is_refused(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        evaluation(tmp_path / name, system(1), config={"seed": 1, "run_dir": name})
    fails(capsys, tmp_path / "a", tmp_path / "b", says="with a seed twice (seeds 1, 1)")


def test_joined_runs_that_are_not_alike_are_named(seeds, capsys) -> None:
    mixed = f"{seeds['rnn'][0]},{seeds['lstm'][1]}"
    found = as_json(capsys, mixed)
    assert "differ in decoder.cell" in found["warnings"][0]


# What is chosen -------------------------------------------------------------------------------


def test_the_newest_evaluation_is_meant_or_the_one_chosen(tmp_path, capsys) -> None:
    run = evaluation(tmp_path / "run", system(1), split="test", decoding="beam3")
    evaluation(run, system(2), split="dev")
    evaluation(run, system(3), split="test")
    folder = run / "evaluation"
    os.utime(folder / "toys-dev" / "greedy" / "scores.json", (time.time() + 60,) * 2)
    assert read_result(run).folder == folder / "toys-dev" / "greedy"
    assert read_result(run, decoding="beam3").folder == folder / "toys-test" / "beam3"
    beam, greedy = (folder / "toys-test" / decoding for decoding in ("beam3", "greedy"))
    assert read_result(beam).folder == read_result(beam / "scores.json").folder == beam
    found = as_json(capsys, greedy, beam)
    assert list(found["systems"]) == ["run greedy", "run beam3"]
    assert found["warnings"][0].startswith(
        "decoding differs (greedy: run greedy; beam3: run beam3)"
    )
    found = as_json(capsys, greedy, beam, evaluation(tmp_path / "b", system(4), split="test"))
    assert "(greedy: run greedy, b greedy; beam3: run beam3)" in found["warnings"][0]
    fails(capsys, run, "--split", "train", says="--split train")
    fails(capsys, run, "--decoding", "beam9", says="only toys-dev/greedy, toys-test/beam3")


def test_an_ensemble_is_no_run(seeds, capsys) -> None:
    first, second, _ = seeds["rnn"]
    evaluation(first, system(5), label="greedy@ensemble3-abc123")
    assert read_result(first).folder.name == "greedy"
    ensemble = first / "evaluation" / "toys-dev" / "greedy@ensemble3-abc123"
    found = as_json(capsys, first, second, ensemble)
    assert list(found["systems"]) == ["rnn (2 seeds)", "rnn-seed1 greedy@ensemble3-abc123"]
    assert found["warnings"] == []


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
def test_what_cannot_be_compared_is_refused_or_said(field, value, name, tmp_path, capsys) -> None:
    first = evaluation(tmp_path / "a", system(1))
    other = evaluation(tmp_path / "b", system(2), **{field: value})
    fails(capsys, first, other, says=f"cannot be compared: {name} ")
    for form in ("text", "markdown", "json"):
        assert main(["compare", f"{first}", f"{other}", "--anyway", *QUICK, "--format", form]) == 0
        text = capsys.readouterr().out
        assert f"{name} differs (" in text
        assert "warning" in text.lower()


def test_other_references_are_refused_though_all_else_is_alike(tmp_path, capsys) -> None:
    first = evaluation(tmp_path / "a", system(1), references="aaaaaaaa")
    same = evaluation(tmp_path / "b", system(2), references="aaaaaaaa", data="a-copy")
    other = evaluation(tmp_path / "c", system(3), references="cccccccc")
    older = evaluation(tmp_path / "d", system(4))
    said = "cannot be compared: references aaaaaaaa and cccccccc; "
    fails(capsys, first, other, says=said)
    fails(capsys, older, first, other, says=said)
    fails(capsys, f"{first},{other}", same, says=said)
    found = as_json(capsys, first, other, "--anyway")
    assert any("references differs (aaaaaaaa: a; cccccccc: c)" in w for w in found["warnings"])
    found = as_json(capsys, first, same)
    assert found["warnings"] == []
    assert not any("could not be checked" in note for note in found["notes"])


def test_results_from_before_references_were_signed_are_compared_with_a_note(
    tmp_path, capsys
) -> None:
    older = evaluation(tmp_path / "old", system(1))
    newer = evaluation(tmp_path / "new", system(2), references="aaaaaaaa", data="toys-mine.csv")
    for pair in ((older, newer), (newer, older)):
        found = as_json(capsys, *pair)
        assert found["warnings"] == []
        assert any("the signature of old is older" in note for note in found["notes"])


def test_results_of_texts_alone_are_compared_as_those_with_fields(tmp_path, capsys) -> None:
    newer = evaluation(tmp_path / "new", system(1), references="aaaaaaaa")
    older = evaluation(tmp_path / "old", system(2), references="aaaaaaaa", old=True)
    found = as_json(capsys, newer, older)
    assert found["warnings"] == []
    assert not any("could not be checked" in note for note in found["notes"])
    other = evaluation(tmp_path / "other", system(2), references="bbbbbbbb", old=True)
    fails(capsys, newer, other, says="cannot be compared: references aaaaaaaa and bbbbbbbb")


def test_metrics_of_no_such_name_are_told_before_anything_else(tmp_path, capsys) -> None:
    first = evaluation(tmp_path / "a", system(1))
    other = evaluation(tmp_path / "b", system(2), tokenization="character")
    fails(capsys, first, other, "--metrics", "foo", says="metrics='foo' is not known")


def test_other_images_are_refused_and_what_is_shared_compared(tmp_path, capsys) -> None:
    whole = system(1)
    names = (*whole.images[:150], *(f"other-{index}" for index in range(50)))
    first = evaluation(tmp_path / "a", whole)
    other = evaluation(tmp_path / "b", Statistics(names, system(2).rows))
    fails(capsys, first, other, says="not of the same images")
    found = as_json(capsys, first, other, "--anyway")
    assert found["images"] == 150
    assert "scored on the 150 images that all have, of up to 200" in found["warnings"]
    shared = {name: rows[:150] for name, rows in whole.rows.items()}
    expected = Statistics(whole.images[:150], shared).scores()["BLEU-4"]
    [score] = [r["score"] for r in found["rows"] if (r["metric"], r["system"]) == ("BLEU-4", "a")]
    assert score == pytest.approx(expected)
    alone = evaluation(tmp_path / "c", Statistics(tuple(map(str, range(200))), whole.rows))
    fails(capsys, first, alone, "--anyway", says="0 images are common to all")


def test_the_order_of_images_does_not_matter(tmp_path) -> None:
    first, other = system(1), system(2, skill=0.1)
    order = numpy.random.default_rng(0).permutation(200)
    shuffled = Statistics(
        tuple(other.images[index] for index in order),
        {name: rows[order] for name, rows in other.rows.items()},
    )
    plain = evaluation(tmp_path / "1" / "b", other)
    mixed = evaluation(tmp_path / "2" / "b", shuffled)
    base = evaluation(tmp_path / "a", first)
    for one, two in zip(compared(base, plain).rows, compared(base, mixed).rows):
        assert one == two


# What is wrong --------------------------------------------------------------------------------


def test_wrong_inputs_get_one_line(runs, tmp_path, capsys) -> None:
    first, other = runs["first"], runs["like"]
    (tmp_path / "bare").mkdir()
    fails(capsys, tmp_path / "gone", says="no such run folder")
    fails(capsys, tmp_path / "bare", says=f"make one with: captioner evaluate {tmp_path / 'bare'}")
    fails(capsys, first, other, first, says="given twice")
    fails(capsys, first, other, "--metrics", "BLEU-9", says="did you mean BLEU-")
    fails(capsys, first, "--seed", -1, says="seed=-1 is negative")
    fails(capsys, first, "--figure", "table.gif", says="name it .svg or .png")
    fails(capsys, f"{first},", says="a comma with no path beside it")
    assert main(["compare", str(first), str(other), "--resamples", "150"]) == 1
    assert "resamples=150 cannot show anything in 5 tests" in capsys.readouterr().err


def test_damaged_files_get_one_line(tmp_path, capsys) -> None:
    runs = [evaluation(tmp_path / str(index), system(index)) for index in range(5)]
    folders = [run / "evaluation" / "toys-dev" / "greedy" for run in runs]
    whole = (folders[0] / "statistics.npz").read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:100], whole[:middle], b"PK" + whole[:50]):
        (folders[0] / "statistics.npz").write_bytes(damaged)
        fails(capsys, runs[0], says="captioner evaluate again")
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        (folders[0] / "statistics.npz").write_bytes(flipped)
        status = main(["compare", str(runs[0]), "--resamples", "100"])
        out, error = capsys.readouterr()
        assert (status == 0 and out) or error.count("\n") == 1
    (folders[1] / "statistics.npz").unlink()
    fails(capsys, runs[1], says="holds no statistics.npz")
    (folders[2] / "scores.json").write_text('{"BLEU-4": 19.2, "signature": "BLEU|tok:ptb"}')
    fails(capsys, runs[2], says="damaged, or of an older version")
    system(77).save(folders[3] / "statistics.npz")
    fails(capsys, runs[3], says="statistics.npz gives BLEU-1")
    (runs[4] / "config.yaml").write_text("a: [")
    fails(capsys, runs[4], says="is no YAML")


def test_an_object_in_the_statistics_is_not_unpickled(tmp_path, capsys) -> None:
    run = evaluation(tmp_path / "run", system(1))
    file = run / "evaluation" / "toys-dev" / "greedy" / "statistics.npz"
    numpy.savez(file, images=numpy.array([{}], dtype=object), cider_d=numpy.ones((1, 1)))
    fails(capsys, run, says="captioner evaluate again")


# The figure -----------------------------------------------------------------------------------


def drawn(table: Comparison) -> Figure:
    figure = comparison_figure._drawn(table, comparison_figure._panels(table))
    FigureCanvasAgg(figure).draw()
    return figure


def test_the_figure_shows_every_interval_where_it_lies(runs) -> None:
    table = compared(*runs.values())
    panels = {one.get_title(loc="left"): one for one in drawn(table).axes if one.get_visible()}
    assert list(panels) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr-D"]
    for name, axes in panels.items():
        rows = [row for row in table.rows if row.metric == name]
        found = {
            int(line.get_ydata()[0]): line.get_xdata()
            for line in axes.lines
            if line.get_marker() == "|"
        }
        assert [tuple(found[place]) for place in range(len(rows))] == [row.interval for row in rows]
        assert [text.get_text() for text in axes.texts] == [f"{row.score:.2f}" for row in rows]
        low, high = axes.get_xlim()
        assert all(low < end < high for row in rows for end in row.interval)
    assert [label.get_text() for label in panels["BLEU-1"].get_yticklabels()] == list(runs)


def test_no_line_runs_through_a_number(runs) -> None:
    """With and without the dashed line, a number looks the same."""
    figure = drawn(compared(runs["first"], runs["like"], metrics=["CIDEr-D"]))
    [axes] = [one for one in figure.axes if one.get_visible()]
    boxes = [text.get_window_extent() for text in axes.texts]
    pictures = [numpy.array(figure.canvas.buffer_rgba())]
    [dashed] = [line for line in axes.lines if line.is_dashed()]
    dashed.remove()
    FigureCanvasAgg(figure).draw()
    pictures.append(numpy.array(figure.canvas.buffer_rgba()))
    assert (pictures[0] != pictures[1]).any()
    for box in boxes:
        rows = slice(len(pictures[0]) - int(box.y1), len(pictures[0]) - int(box.y0))
        with_line, without = (one[rows, int(box.x0) : int(box.x1)] for one in pictures)
        assert with_line.size and (with_line == without).all()


def test_an_axis_of_scores_does_not_begin_far_below_zero(tmp_path) -> None:
    names = tuple(map(str, range(30)))
    for name in ("a", "b"):
        rows = numpy.hstack([numpy.zeros((30, 4)), numpy.full((30, 6), 5.0)])
        evaluation(tmp_path / name, Statistics(names, {"bleu": rows}))
    for axes in drawn(compared(tmp_path / "a", tmp_path / "b")).axes:
        low, high = axes.get_xlim()
        assert -0.1 < low <= 0 < 1 <= high
        assert [text.get_text() for text in axes.texts] == ["all 0", "0.00", "0.00"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0"]


@pytest.mark.parametrize("kind", [".svg", ".png"])
def test_both_kinds_of_figure_are_the_same_whenever_they_are_drawn(kind, runs, tmp_path) -> None:
    paths = [str(run) for run in runs.values()]
    for name in ("x", "y"):
        assert main(["compare", *paths, "--figure", str(tmp_path / f"{name}{kind}"), *QUICK]) == 0
    content = (tmp_path / f"x{kind}").read_bytes()
    assert content == (tmp_path / f"y{kind}").read_bytes()
    if kind == ".png":
        assert Image.open(tmp_path / "x.png").width > 1000
    else:
        texts = ["".join(one.itertext()).strip() for one in xml.fromstring(content).iter()]
        assert {"CIDEr-D", *runs} <= set(texts)


def test_chinese_and_odd_names_are_drawn_and_no_letter_is_read_as_mathematics(tmp_path) -> None:
    names = ("基线模型", "a$b_c$ #1", "a_name_of_more_than_forty_letters_of_seed_1")
    runs = [evaluation(tmp_path / name, system(index)) for index, name in enumerate(names)]
    drawing = comparison_figure.figure(compared(*runs, metrics=["CIDEr-D"]), ".svg").decode()
    texts = ["".join(one.itertext()).strip() for one in xml.fromstring(drawing).iter()]
    assert {names[0], names[1]} <= set(texts)
    assert {"a_name_of_more_than_fort", "…_forty_letters_of_seed_1"} & set(texts)


def test_a_lacking_font_is_said_of_pictures_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fonts, "_files", lambda: ())
    run = evaluation(tmp_path / "基线", system(1))
    for kind, said in ((".png", True), (".svg", False)):
        assert main(["compare", str(run), "--figure", str(tmp_path / f"x{kind}"), *QUICK]) == 0
        error = capsys.readouterr().err
        assert ("no font of this machine has 2 of its letters (Chinese)" in error) == said
        assert error.count("\n") == 1 + said


def test_a_name_keeps_both_ends_and_two_lines() -> None:
    assert comparison_figure._shortened("short") == "short"
    assert comparison_figure._shortened("x" * 24 + "y" * 10) == "x" * 24 + "\n" + "y" * 10
    long = comparison_figure._shortened("a" * 30 + "b" * 30 + "c" * 30)
    assert long == "a" * 24 + "\n…" + "c" * 23
    assert comparison_figure._shortened("模" * 13) == "模" * 12 + "\n模"  # as wide as two


def test_without_matplotlib_one_line_names_the_extra(runs, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(capsys, runs["first"], "--figure", "x.svg", says="pip install 'captioner[figures]'")


def test_one_reference_is_one_and_a_folder_made_elsewhere_is_named(
    tmp_path, monkeypatch, capsys
) -> None:
    runs = [str(evaluation(tmp_path / name, system(3), references_per_image="1")) for name in "ab"]
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    monkeypatch.chdir(here)
    for output, said in (
        (away / "deep" / "t.md", f"wrote {away}/deep/t.md (made the folder {away})\n"),
        (away / "t.md", f"wrote {away}/t.md\n"),
        (Path("tables/t.md"), "wrote tables/t.md\n"),
        (
            Path("../there/t.md"),
            f"wrote ../there/t.md (made the folder {tmp_path}/there)\n",
        ),
    ):
        assert main(["compare", *runs, *QUICK, "--output", str(output)]) == 0
        assert capsys.readouterr().err == said
        assert "200 images, 1 reference;" in output.read_text()


def test_a_split_that_there_is_not_is_told_with_those_that_are(runs, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(runs["first"]), "--split", "val"])
    assert "train" in capsys.readouterr().err
