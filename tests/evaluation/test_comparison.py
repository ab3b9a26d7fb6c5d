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


def test_verdicts_are_correct(runs) -> None:
    table = compared(*runs.values())
    differences = {(row.metric, row.system): row.difference for row in table.rows}
    for metric in ("BLEU-1", "BLEU-4", "CIDEr-D"):
        assert differences[metric, "first"] is None
        assert differences[metric, "like"].verdict == UNDECIDED
        assert differences[metric, "better"].verdict == HIGHER
        assert differences[metric, "worse"].verdict == LOWER
    assert table.tests == 3 * 5


def test_rows_have_the_scores_and_differences_of_the_files(runs) -> None:
    table = compared(*runs.values())
    scores = {name: read_result(run).scores for name, run in runs.items()}
    for row in table.rows:
        assert row.score == pytest.approx(scores[row.system][row.metric])
        if row.difference:
            expected = scores[row.system][row.metric] - scores["first"][row.metric]
            assert row.difference.value == pytest.approx(expected)
            low, high = row.difference.interval
            assert low < expected < high


def test_verdicts_agree_with_the_minimum_significant_difference(tmp_path) -> None:
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


def test_p_values_are_corrected_over_the_whole_table(runs) -> None:
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


def test_text_and_markdown_have_the_same_content(runs, tmp_path, capsys) -> None:
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
    for line, (metric, *other_cells) in zip(lines, [cells[0], *cells[2:]]):
        assert line[0] == metric or (not metric and line[0])
        assert line[1:] == other_cells
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert notes == [line for line in file.read_text().splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_table_wider_than_the_terminal_is_folded(width: int, runs) -> None:
    table = compared(*runs.values())
    unfolded, folded = as_text(table), as_text(table, width=width)
    lines = [line for line in folded.splitlines() if not line.startswith(("- sig", "  tok:"))]
    assert max(map(len, lines)) <= width or width == 40  # two names and an interval need 45
    assert folded.count("verdict") >= 1 and folded.count("metric") > unfolded.count("metric")
    texts = ({word for word in text.split() if set(word) != {"-"}} for text in (unfolded, folded))
    assert next(texts) == next(texts)


def test_a_terminal_gets_aligned_columns_in_its_width(runs, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["compare", str(runs["first"]), str(runs["better"]), *QUICK]) == 0
    out = capsys.readouterr().out
    assert out == as_text(compared(runs["first"], runs["better"]), width=80)


def test_columns_are_aligned_in_any_script(tmp_path) -> None:
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


def test_constant_scores_give_no_verdict(tmp_path) -> None:
    names = tuple(map(str, range(30)))
    for name in ("a", "b"):
        rows = numpy.hstack([numpy.zeros((30, 4)), numpy.full((30, 6), 5.0)])
        evaluation(tmp_path / name, Statistics(names, {"bleu": rows}))
    [*_, row] = [row for row in compared(tmp_path / "a", tmp_path / "b").rows if row.difference]
    assert (row.difference.value, row.difference.shown_from) == (0.0, None)
    assert row.difference.verdict == UNDECIDED


def smallest_p_by_all_swaps(first: Statistics, second: Statistics) -> float:
    """The p of approximate randomization of CIDEr-D over all 2^n swaps."""
    a, b = (system.rows["cider_d"][:, 0] for system in (first, second))
    signs = list(product((1, -1), repeat=len(a)))
    means = [abs(numpy.mean(numpy.array(sign) * (b - a))) for sign in signs]
    return sum(value >= means[0] - 1e-12 for value in means) / len(signs)


@pytest.mark.parametrize("images", [2, 3, 5, 8])
def test_no_test_over_images_falls_below_the_smallest_p(images: int) -> None:
    first, far = system(1, n=images), system(2, n=images, skill=9.0)
    assert smallest_p_by_all_swaps(first, far) == smallest_p(images)


@pytest.mark.parametrize("tests", [1, 2, 5, 15, 40])
def test_fewest_images_is_the_smallest_number_that_can_be_significant(tests: int) -> None:
    least = fewest_images(tests)
    assert min(holm([smallest_p(least)] * tests)) < ALPHA
    assert min(holm([smallest_p(least - 1)] * tests)) >= ALPHA


def test_too_few_images_get_their_own_verdict(tmp_path, capsys) -> None:
    for name, skill in (("a", 0.0), ("b", 9.0)):
        evaluation(tmp_path / name, system(len(name), n=3, skill=skill))
    table = compared(tmp_path / "a", tmp_path / "b")
    differences = [row.difference for row in table.rows if row.difference]
    assert {difference.verdict for difference in differences} == {TOO_FEW}
    assert {difference.shown_from for difference in differences} == {None}
    paths = [str(tmp_path / name) for name in "ab"]
    for form in ("text", "markdown", "json"):
        assert main(["compare", *paths, *QUICK, "--format", form]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert "3 images are too few to show any difference" in output
        assert "evaluate 8 images or more" in output
        assert "no difference shown" not in output and "rough" in output
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
def test_metrics_are_selected_by_any_of_their_names(metrics, shown, runs, capsys) -> None:
    content = as_json(capsys, runs["first"], runs["like"], "--metrics", metrics)
    assert list(dict.fromkeys(row["metric"] for row in content["rows"])) == shown


def test_only_evaluated_jobs_of_a_sweep_are_compared(tmp_path, capsys) -> None:
    sweep = tmp_path / "sweep # 1"
    for index, cell in enumerate(("rnn", "gru")):
        evaluation(sweep / f"{index}_decoder.cell={cell}", system(index))
    (sweep / "2_decoder.cell=lstm" / "logs").mkdir(parents=True)
    (sweep / "multirun.yaml").write_text("hydra: {}")
    (sweep / "optimization_results.yaml").write_text("name: optuna")
    content = as_json(capsys, *sorted(sweep.iterdir()))
    assert list(content["systems"]) == ["0_decoder.cell=rnn", "1_decoder.cell=gru"]
    assert {
        "skipped 2 (no run): multirun.yaml, optimization_results.yaml",
        "skipped 1 (a job of the sweep without an evaluation): 2_decoder.cell=lstm",
    } <= set(content["notes"])
    fails(capsys, sweep, says="a sweep of several runs, not a run")
    job, second_job = sweep / "2_decoder.cell=lstm", sweep / "1_decoder.cell=gru"
    fails(capsys, job, says="nothing is left to compare: skipped 1 (a job")
    fails(capsys, sweep / "multirun.yaml", says="nothing is left to compare: skipped 1 (no run)")
    fails(capsys, second_job, job, says=f"only {second_job} is left to compare: skipped 1 (a job")
    fails(capsys, second_job, sweep / "multirun.yaml", says=f"only {second_job} is left to compare")


def test_a_file_is_skipped_only_if_it_comes_from_a_glob(tmp_path, capsys) -> None:
    folder = tmp_path / "runs"
    runs = [evaluation(folder / name, system(index)) for index, name in enumerate("abc")]
    (folder / ".hidden").write_text("")
    (folder / "captions.csv").write_text("image,caption\n")
    content = as_json(capsys, *sorted(path for path in folder.iterdir() if path.name != ".hidden"))
    assert list(content["systems"]) == ["a", "b", "c"]
    assert "skipped 1 (no run): captions.csv" in content["notes"]
    message = "captions.csv: not a run, an evaluation folder or a scores.json"
    fails(capsys, *runs[:2], folder / "captions.csv", says=message)
    fails(capsys, runs[0], folder / "captions.csv", says=message)
    fails(capsys, folder / "captions.csv", runs[0], says=message)


# Seeds ----------------------------------------------------------------------------------------


def test_seeds_of_a_configuration_become_one_system(seeds, capsys) -> None:
    paths = [*seeds["rnn"], *seeds["lstm"]]
    content = as_json(capsys, *paths)
    assert list(content["systems"]) == ["rnn (3 seeds)", "lstm (3 seeds)"]
    joined = (",".join(map(str, seeds[cell])) for cell in ("rnn", "lstm"))
    assert as_json(capsys, *joined) == content
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
    content = as_json(capsys, *(tmp_path / name for name in ("own1", "own2", "other1", "other2")))
    assert list(content["systems"]) == ["own (2 seeds)", "other1", "other2"]


def test_a_group_has_the_mean_and_spread_of_its_seeds(seeds) -> None:
    table = compared(*seeds["rnn"], *seeds["lstm"])
    results = {cell: [read_result(run) for run in runs] for cell, runs in seeds.items()}
    for metric in ("BLEU-4", "CIDEr-D"):
        first, second = [row for row in table.rows if row.metric == metric]
        scores = {
            c: [r.scores[metric] for r in results_of_cell] for c, results_of_cell in results.items()
        }
        assert first.seeds == pytest.approx(scores["rnn"])
        assert second.score == pytest.approx(numpy.mean(scores["lstm"]))
        assert second.deviation == pytest.approx(numpy.std(scores["lstm"], ddof=1))
        groups = [[r.statistics for r in results_of_cell] for results_of_cell in results.values()]
        resampled = bootstrap(groups, resamples=1000)[metric]
        expected = OverSeeds.of(resampled[1] - resampled[0], scores["rnn"], scores["lstm"])
        assert second.difference.p_seeds == pytest.approx(max(expected.p(), 1 / 1001))
        assert second.difference.interval_seeds == pytest.approx(expected.interval())


def test_a_large_variance_over_seeds_changes_the_verdict(tmp_path) -> None:
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
    message = f"{folders[0]}, {folders[1]}: evaluations of one configuration with a seed twice"
    fails(capsys, tmp_path / "a", tmp_path / "b", says=f"{message} (seeds 1, 1)")


@pytest.mark.parametrize(
    "own, name",
    [
        ({"references": "bbbbbbbb", "data": "toys-mine"}, "data toys and toys-mine"),
        ({"references": "bbbbbbbb"}, "references aaaaaaaa and bbbbbbbb"),
        ({"split": "test"}, "split dev and test"),
    ],
)
def test_evaluations_of_one_run_on_other_data_are_not_grouped(own, name, tmp_path, capsys) -> None:
    run, config = tmp_path / "run", {"seed": 1, "run_dir": "run"}
    first = {"references": "aaaaaaaa", "split": "dev"}
    evaluation(run, system(1), config=config, **first)
    if "split" not in own:
        (run / "evaluation" / "toys-dev").rename(run / "evaluation" / "first-dev")
    evaluation(run, system(2), **{**first, **own})
    folders = [file.parent for file in sorted(run.glob("evaluation/*/*/scores.json"))]
    fails(capsys, *folders, says=f"{folders[0]} and {folders[1]} cannot be compared: ")
    fails(capsys, *folders, says=name)
    content = as_json(capsys, *folders, "--anyway")
    assert len(content["systems"]) == len(content["signatures"]) == 2
    texts = [json.loads((folder / "scores.json").read_text())["signature"] for folder in folders]
    assert content["signatures"] == {text: [name] for text, name in zip(texts, content["systems"])}
    assert main(["compare", *map(str, folders), "--anyway", *QUICK]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(
        f"signature of {name}: {text}" in out for text, (name,) in content["signatures"].items()
    )


def test_joined_runs_with_different_options_give_a_warning(seeds, capsys) -> None:
    mixed = f"{seeds['rnn'][0]},{seeds['lstm'][1]}"
    content = as_json(capsys, mixed)
    assert "differ in decoder.cell" in content["warnings"][0]
