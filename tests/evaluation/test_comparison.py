"""`captioner compare`: verdicts, tables and seeds."""

import json
import sys
from itertools import product

import numpy
import pytest
from rich.cells import cell_len
from support.comparisons import QUICK, as_json, compared, fails
from support.evaluations import evaluation, system

from captioner.cli import main
from captioner.evaluation.comparison import HIGHER, LOWER, TOO_FEW, UNDECIDED
from captioner.evaluation.comparison_tables import as_text
from captioner.evaluation.results import read_result
from captioner.metrics.significance import (
    ALPHA,
    OverSeeds,
    bootstrap,
    fewest_images,
    holm,
    smallest_p,
)
from captioner.metrics.statistics import Statistics

# Verdicts and tables --------------------------------------------------------------------------


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
    assert "distinct-2: computed from all captions together" in capsys.readouterr().out


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
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]
    assert len(lines) == len(cells) - 1
    for line, (metric, *others) in zip(lines, [cells[0], *cells[2:]]):
        assert line[0] == metric or (not metric and line[0])
        assert line[1:] == others
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert notes == [line for line in file.read_text().splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_table_wider_than_the_terminal_is_folded(width: int, runs) -> None:
    table = compared(*runs.values())
    whole, folded = as_text(table), as_text(table, width=width)
    lines = [line for line in folded.splitlines() if not line.startswith(("- sig", "  tok:"))]
    assert max(map(len, lines)) <= width or width == 40  # two names and an interval need 45
    assert folded.count("verdict") >= 1 and folded.count("metric") > whole.count("metric")
    said = ({word for word in text.split() if set(word) != {"-"}} for text in (whole, folded))
    assert next(said) == next(said)


def test_a_terminal_gets_aligned_columns_in_its_width(runs, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["compare", str(runs["first"]), str(runs["better"]), *QUICK]) == 0
    out = capsys.readouterr().out
    assert out == as_text(compared(runs["first"], runs["better"]), width=80)


def test_columns_stand_below_each_other_in_any_script(tmp_path) -> None:
    for index, name in enumerate(("基线模型", "b")):
        evaluation(tmp_path / name, system(index))
    table = compared(*(tmp_path / name for name in ("基线模型", "b")), metrics=["CIDEr-D"])
    lines = [line for line in as_text(table).splitlines() if "[" in line and ", " in line]
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
    """The p of approximate randomization over every one of the 2^n swaps, of CIDEr-D."""
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
    job, other = sweep / "2_decoder.cell=lstm", sweep / "1_decoder.cell=gru"
    fails(capsys, job, says="nothing is left to compare: skipped 1 (a job")
    fails(capsys, sweep / "multirun.yaml", says="nothing is left to compare: skipped 1 (no run)")
    fails(capsys, other, job, says=f"only {other} is left to compare: skipped 1 (a job")
    fails(capsys, other, sweep / "multirun.yaml", says=f"only {other} is left to compare")


def test_a_file_is_skipped_only_where_a_glob_has_given_it(tmp_path, capsys) -> None:
    folder = tmp_path / "runs"
    runs = [evaluation(folder / name, system(index)) for index, name in enumerate("abc")]
    (folder / ".hidden").write_text("")
    (folder / "captions.csv").write_text("image,caption\n")
    found = as_json(capsys, *sorted(path for path in folder.iterdir() if path.name != ".hidden"))
    assert list(found["systems"]) == ["a", "b", "c"]
    assert "skipped 1 (no run): captions.csv" in found["notes"]
    said = "captions.csv: not a run, an evaluation folder or a scores.json"
    fails(capsys, *runs[:2], folder / "captions.csv", says=said)
    fails(capsys, runs[0], folder / "captions.csv", says=said)
    fails(capsys, folder / "captions.csv", runs[0], says=said)


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
    folders = [tmp_path / name / "evaluation" / "toys-dev" / "greedy" for name in ("a", "b")]
    said = f"{folders[0]}, {folders[1]}: evaluations of one configuration with a seed twice"
    fails(capsys, tmp_path / "a", tmp_path / "b", says=f"{said} (seeds 1, 1)")


@pytest.mark.parametrize(
    "own, name",
    [
        ({"references": "bbbbbbbb", "data": "toys-mine"}, "data toys and toys-mine"),
        ({"references": "bbbbbbbb"}, "references aaaaaaaa and bbbbbbbb"),
        ({"split": "test"}, "split dev and test"),
    ],
)
def test_evaluations_of_one_run_on_other_data_are_no_seeds(own, name, tmp_path, capsys) -> None:
    run, config = tmp_path / "run", {"seed": 1, "run_dir": "run"}
    first = {"references": "aaaaaaaa", "split": "dev"}
    evaluation(run, system(1), config=config, **first)
    if "split" not in own:
        (run / "evaluation" / "toys-dev").rename(run / "evaluation" / "first-dev")
    evaluation(run, system(2), **{**first, **own})
    folders = [file.parent for file in sorted(run.glob("evaluation/*/*/scores.json"))]
    fails(capsys, *folders, says=f"{folders[0]} and {folders[1]} cannot be compared: ")
    fails(capsys, *folders, says=name)
    found = as_json(capsys, *folders, "--anyway")
    assert len(found["systems"]) == len(found["signatures"]) == 2
    texts = [json.loads((one / "scores.json").read_text())["signature"] for one in folders]
    assert found["signatures"] == {text: [name] for text, name in zip(texts, found["systems"])}
    assert main(["compare", *map(str, folders), "--anyway", *QUICK]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(
        f"signature of {name}: {text}" in out for text, (name,) in found["signatures"].items()
    )


def test_joined_runs_that_are_not_alike_are_named(seeds, capsys) -> None:
    mixed = f"{seeds['rnn'][0]},{seeds['lstm'][1]}"
    found = as_json(capsys, mixed)
    assert "differ in decoder.cell" in found["warnings"][0]
