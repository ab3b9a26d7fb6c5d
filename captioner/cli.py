"""The command line: one table of verbs. Parsing only; each verb imports what it needs when called.

Exit status: 0 done; 1 something could not be done, and standard error says what; 2 the command line
itself is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner import __version__

EXAMPLES = """\
examples:
  captioner train experiment=demo                      train on the embedded data set
  captioner evaluate runs/demo data.split=test         score a run
  captioner compare runs/lstm runs/gru                 is one better, and how sure is that
  captioner caption photo.jpg --model runs/demo        caption a photograph
  captioner data stats data=flickr8k data.root=~/flickr8k

`captioner VERB --help` tells more of each. CAPTIONER_TRACEBACK=1 shows where an error arose.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in VERBS:
            return VERBS[arguments[0]][0](arguments[1:])
        _top_parser().parse_args(arguments or ["--help"])
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("CAPTIONER_TRACEBACK"):
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, status: int = 1) -> int:
    print("captioner: error: " + " ".join(message.split()), file=sys.stderr)
    return status


def _top_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {verb:<12}{text}" for verb, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="captioner",
        usage="captioner VERB ...",
        description=f"Image captioning that can be read like a textbook.\n\nverbs:\n{lines}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"captioner {__version__}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help=argparse.SUPPRESS)
    return parser


def _parser(verb: str, description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"captioner {verb}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


# train ----------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """A Hydra application: its flags and overrides, see ``captioner train --help``."""
    import hydra

    from captioner import config

    flags = [one for one in argv if one.startswith("-")]
    querying = any(flag in ("-sc", "--shell-completion", "-h", "--help") for flag in flags)
    overrides = [one for one in argv if "=" in one and not one.startswith("-")]
    ready = list(argv)
    if not querying:
        fixed = config.checked(overrides)
        ready = [one for one in argv if one not in overrides] + fixed
        ready += _resume_folder(fixed)
    sys.argv = ["captioner train", *ready]
    hydra.main(str(config.conf_folder()), "config", version_base="1.3")(_train_job)()
    return 0


def _resume_folder(overrides: Sequence[str]) -> list[str]:
    """A resumed run goes on in its own folder."""
    runs = [one.partition("=")[2] for one in overrides if one.startswith("resume=")]
    if not runs or runs[-1] in ("null", ""):
        return []

    from captioner import checkpoint

    return [f"run_dir={checkpoint.run_folder(checkpoint.find(runs[-1], name=checkpoint.LAST))}"]


def _train_job(composed: Any) -> float:
    """One training run; returns the monitored score to sweepers."""
    from hydra.core.hydra_config import HydraConfig

    from captioner.config import plain

    try:
        folder = Path(HydraConfig.get().runtime.output_dir)
        return _train(plain(composed), folder, list(HydraConfig.get().overrides.task))
    except (ValueError, OSError) as error:
        if os.environ.get("CAPTIONER_TRACEBACK"):
            raise
        raise SystemExit(_fail(str(error))) from None


def _train(config: dict[str, Any], folder: Path, overrides: Sequence[str]) -> float:
    from captioner import checkpoint
    from captioner.config import override
    from captioner.training import train

    resume = None
    if config["resume"] is not None:
        resume = checkpoint.find(config["resume"], name=checkpoint.LAST)
        kept = [o for o in overrides if o.partition("=")[0] not in ("resume", "run_dir")]
        config = override(checkpoint.read(resume).config, kept)
        folder = checkpoint.run_folder(resume)
    run = train(config, folder, resume=resume)
    _print_table(
        "dev scores of the best checkpoint",
        {name: f"{value:.2f}" for name, value in run.scores.items()},
    )
    print(f"run folder       {_short(run.folder)}\nbest checkpoint  {_short(run.best)}")
    return run.score


# evaluate -------------------------------------------------------------------------------------


def evaluate(argv: Sequence[str]) -> int:
    """Decode a split freely and score it."""
    parser = _parser(
        "evaluate",
        "Decode a split freely (never teacher-forced), score it against all references, and write\n"
        "scores.json, captions.jsonl, statistics.npz and sheet.png into the run folder, by split\n"
        "and decoding.",
        "  captioner evaluate runs/demo\n"
        "  captioner evaluate runs/demo data.split=test decoding=beam decoding.beam_size=3\n"
        "  captioner evaluate copied.ckpt data.root=~/flickr8k decoding.length_penalty=0.7\n"
        "  captioner evaluate runs/demo --metrics bleu,cider-d\n"
        "  captioner evaluate runs/a runs/b decoding=beam decoding.ensemble=log_probability\n"
        "  captioner evaluate runs/demo decoding=top_p decoding.captions=5 decoding.seed=1\n",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder or checkpoint; several decode together"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data.split=dev|test|train, data.root=…, loader.…, decoding=NAME (greedy, beam, "
        "diverse_beam, sample, top_k, top_p), decoding.… (any option of captioner caption)",
    )
    _add_metrics(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of what is printed"
    )
    options = parser.parse_intermixed_args(argv)

    from captioner.api import Captioner
    from captioner.config import override
    from captioner.evaluation import evaluate, result_folder

    metrics = _metrics(options.metrics)
    runs = [one for one in options.runs if "=" not in one or Path(one).exists()]
    overrides = [one for one in (*options.runs, *options.overrides) if one not in runs]
    if not runs:
        parser.error("name a run folder or a checkpoint before the overrides")
    captioner = Captioner.load(runs, device=options.device)
    base = {key: captioner.config[key] for key in ("data", "loader")}
    base["data"] = {**base["data"], "split": "dev"}
    base["decoding"] = captioner.options.as_dict()
    chosen = override(base, overrides)
    data, decoding = chosen["data"], chosen["decoding"]
    split = data.pop("split", "dev")
    groups = {"data": data, "decoding": decoding, "loader": chosen["loader"]}
    result = evaluate(captioner, **groups, split=split, metrics=metrics)
    paths = result.write(result_folder(captioner, decoding, data, split))
    if options.format == "json":
        return _print_json({**result.scores.as_dict(), "files": [str(path) for path in paths]})
    rate = len(result.captions) / max(result.seconds, 1e-9)
    _print_table(
        f"{split}: {len(result.captions)} images, {rate:.0f} captions/s",
        {name: f"{value:.2f}" for name, value in result.scores.values.items()},
    )
    print(result.scores.signature)
    for metric, reason in result.scores.missing.items():
        print(f"no {metric}: {reason}")
    for path in paths:
        print(f"wrote {_short(path)}")
    return 0


# score ----------------------------------------------------------------------------------------


def score(argv: Sequence[str]) -> int:
    """Score captions that are already there."""
    parser = _parser(
        "score",
        "Score captions of any system. FILE holds one caption an image; its references stand\n"
        "beside it or in REFERENCES. Both may be JSON lines (captions.jsonl of evaluate), JSON\n"
        "(COCO's results and annotations, or a list of objects), or CSV with columns named image,\n"
        "caption, and reference or reference_1, reference_2, ...; in REFERENCES an image may come\n"
        "again and again, with a caption by a person each time.",
        "  captioner score runs/demo/evaluation/shapes-dev/greedy/captions.jsonl\n"
        "  captioner score results.json captions_val2014.json --subset --metrics bleu,cider-d\n"
        "  captioner score mine.csv references.csv --format markdown --output scores.md\n"
        "  captioner score mine.jsonl --training train.csv --statistics scores/mine\n",
    )
    parser.add_argument("file", metavar="FILE", help="captions: .jsonl, .json, .csv or .tsv")
    parser.add_argument(
        "references", metavar="REFERENCES", nargs="?", help="captions by people, in such a file"
    )
    parser.add_argument(
        "--tokenize",
        default="ptb",
        metavar="NAME",
        help="ptb (English, default), ptb-jar (the same, by java), character (Chinese)",
    )
    _add_metrics(parser)
    parser.add_argument(
        "--subset", action="store_true", help="leave out images that FILE does not caption"
    )
    parser.add_argument("--training", metavar="FILE", help="captions of training, for novelty")
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    parser.add_argument(
        "--statistics", metavar="FOLDER", help="write scores.json and statistics.npz there"
    )
    options = parser.parse_args(argv)

    from captioner.scoring import score_files

    return score_files(
        options.file,
        options.references,
        tokenize=options.tokenize,
        metrics=_metrics(options.metrics),
        subset=options.subset,
        training=options.training,
        format=options.format,
        output=options.output,
        statistics=options.statistics,
    )


# compare --------------------------------------------------------------------------------------


def compare(argv: Sequence[str]) -> int:
    """Compare evaluated runs, with intervals and tests."""
    options = _compare_parser().parse_args(argv)

    from captioner.comparison import compare
    from captioner.inspection import comparisons, intervals
    from captioner.systems import read_systems

    draw = intervals.drawing(options.figure) if options.figure else None
    systems = read_systems(
        options.runs, split=options.split, decoding=options.decoding, group=not options.no_group
    )
    metrics = options.metrics.split(",") if options.metrics else None
    with _progress("comparing", 2 * options.resamples) as progress:
        result = compare(
            systems,
            metrics=metrics,
            resamples=options.resamples,
            seed=options.seed,
            anyway=options.anyway,
            progress=progress,
        )
    if draw:
        draw(result, Path(options.figure))
    text = comparisons.FORMATS[options.format](result)
    if options.output:
        from captioner.data.records import write_whole

        write_whole(options.output, text)
    else:
        print(text, end="")
    for path in (options.output, options.figure):
        if path:
            print(f"wrote {_short(Path(path))}", file=sys.stderr)
    return 0


def _compare_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "compare",
        "Compare evaluated runs with the first of them: scores with intervals, differences with\n"
        "intervals and paired tests, and a verdict. Runs that differ only in their seed become\n"
        "one system. Runs scored on other images, references or words are refused.",
        "  captioner compare runs/lstm runs/gru\n"
        "  captioner compare runs/lstm runs/gru --split test --decoding beam3-lp0.7\n"
        "  captioner compare runs/a1,runs/a2,runs/a3 runs/b1,runs/b2,runs/b3 --metrics CIDEr-D\n"
        "  captioner compare runs/a/evaluation/flickr8k-dev/greedy runs/a/evaluation/flickr8k-dev/"
        "beam3\n"
        "  captioner compare runs/* --format markdown --output table.md --figure table.svg\n",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder (its newest evaluation), an evaluation folder or a scores.json; the "
        "first is the baseline; commas join seeds of one configuration",
    )
    add("--split", metavar="S", help="of run folders, take evaluations of this split")
    add("--decoding", metavar="D", help="of run folders, take this decoding, such as beam3-lp0.7")
    add("--metrics", metavar="A,B", help="compare only these; fewer tests are corrected less")
    add("--no-group", action="store_true", help="keep runs that differ only in their seed apart")
    add("--anyway", action="store_true", help="compare what should not be compared, and say so")
    add("--resamples", type=int, default=10_000, metavar="R", help="of each kind (default 10000)")
    add("--seed", type=int, default=1, metavar="N", help="of the resamples (default 1)")
    add("--format", choices=("text", "markdown", "json"), default="text")
    add("--output", metavar="FILE", help="write there instead of standard output")
    add("--figure", metavar="FILE", help="draw the intervals into a .svg or .png")
    return parser


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; yields what to tell of progress."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


# caption --------------------------------------------------------------------------------------


def caption(argv: Sequence[str]) -> int:
    """Caption image files."""
    parser = _parser(
        "caption",
        "Caption image files. Files that are not readable images are named on standard error, the\n"
        "others are captioned, and the exit status is 1.",
        "  captioner caption photo.jpg --model runs/demo\n"
        "  captioner caption photos/ '*.png' --model runs/demo --beam-size 5 --format csv\n"
        "  find . -name '*.jpg' | captioner caption - --model runs/demo --format json\n"
        "  captioner caption photo.jpg --model runs/demo --beam-size 5 --captions 5\n"
        "  captioner caption photo.jpg --model runs/demo --temperature 1 --top-p 0.9 --seed 3\n"
        "  captioner caption photo.jpg --model runs/demo --required-words 'dog,red ball'\n"
        "  captioner caption photo.jpg --model runs/demo --prefix 'a dog'\n"
        "  captioner caption photo.jpg --model runs/a --model runs/b\n",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, a folder with all below it, a quoted glob, or - for a list on standard input",
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="RUN",
        help="run folder or checkpoint; given several times, the models decode together",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="images at a time")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text")
    parser.add_argument("--output", metavar="FILE", help="write there instead of standard output")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_decoding(parser)
    options = parser.parse_args(argv)

    from captioner.captions import caption_files

    given = ((name, getattr(options, name)) for name in DECODING)
    decoding = {name: value for name, value in given if value is not None}
    return caption_files(
        options.paths,
        model=options.model,
        device=options.device,
        batch_size=options.batch_size,
        format=options.format,
        output=options.output,
        decoding=decoding,
    )


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


DECODING: dict[str, tuple[Any, str, str]] = {
    "beam_size": (int, "K", "hypotheses kept; 1 is greedy"),
    "length_penalty": (float, "A", "rank by log p / n^A: 0 none, 1 average by word"),
    "length_rule": (str, "RULE", "power, or gnmt: log p / ((5 + n) / 6)^A"),
    "early_stopping": (bool, "", "stop once K captions have ended"),
    "captions": (int, "N", "captions of each image: the n best, or n samples"),
    "temperature": (float, "T", "above 0 draws words instead of searching"),
    "top_k": (int, "N", "draw from the N most probable words"),
    "top_p": (float, "P", "draw from the fewest words that hold this share of the probability"),
    "seed": (int, "S", "of the draws"),
    "groups": (int, "G", "diverse beam search in G groups of K / G"),
    "diversity": (float, "D", "what a word costs for each earlier group that says it"),
    "min_length": (int, "N", "fewest words"),
    "max_length": (int, "N", "most words, the end included"),
    "no_repeat_ngram": (int, "N", "no N words twice in the same order"),
    "no_repeat_word": (bool, "", "no word directly follows itself"),
    "banned_words": (_listed, "LIST", "words and phrases never said, parted by commas"),
    "required_words": (_listed, "LIST", "words and phrases that must be said"),
    "prefix": (str, "TEXT", "how each caption begins"),
    "ensemble": (str, "RULE", "with several models, average probability or log_probability"),
}
"""The options of decoding.DecodingOptions as flags: type, placeholder, help."""


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (unset: as the model was trained)")
    for name, (kind, placeholder, text) in DECODING.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "no_repeat_word":
            group.add_argument(flag, action="store_const", const=True, help=text)
        elif kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(flag, type=kind, metavar=placeholder, help=text)


# average --------------------------------------------------------------------------------------


def average(argv: Sequence[str]) -> int:
    """Average the weights of checkpoints of one run."""
    parser = _parser(
        "average",
        "Average the weights of several checkpoints of one run into a new checkpoint, which every\n"
        "other verb takes. A run folder stands for the epochs that it kept (callbacks.keep=5).",
        "  captioner average runs/demo\n"
        "  captioner average runs/demo/checkpoints/epoch-0[45].ckpt --output mean.ckpt\n",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or checkpoints")
    parser.add_argument(
        "--output", metavar="FILE", help="a new file (default average.ckpt beside the first)"
    )
    options = parser.parse_args(argv)

    from captioner import checkpoint

    paths = [path for run in options.runs for path in checkpoint.kept(run)]
    output = Path(options.output) if options.output else paths[0].parent / "average.ckpt"
    checkpoint.average(paths, output)
    print(f"averaged {', '.join(path.name for path in paths)}\nwrote {_short(output)}")
    return 0


# report ---------------------------------------------------------------------------------------


def report(argv: Sequence[str]) -> int:
    """Write a page about an evaluation."""
    parser = _parser(
        "report",
        "Write one HTML page about an evaluation: scores, training curves, captions with their\n"
        "pictures, errors by kind, scores by length, words by frequency, and what stands in the\n"
        "training captions. The page needs no network. See docs/report.md.",
        "  captioner report runs/demo\n"
        "  captioner report runs/demo --split test --decoding beam3-lp0.7 --images 12\n"
        "  captioner report runs/nic/evaluation/flickr8k-dev/greedy --data-root ~/flickr8k \\\n"
        "      --output nic.html\n",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run folder, of which the newest evaluation is taken, or an evaluation folder",
    )
    parser.add_argument("--split", choices=("train", "dev", "test"), help="of the evaluation")
    parser.add_argument("--decoding", metavar="LABEL", help="of the evaluation, as its folder")
    parser.add_argument(
        "--images", type=int, default=8, metavar="N", help="captions shown in each part (default 8)"
    )
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the data set lies, if it has moved"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="default: report.html in the evaluation folder"
    )
    options = parser.parse_args(argv)

    from captioner.inspection.report import report as write_report

    path = write_report(
        options.run,
        split=options.split,
        decoding=options.decoding,
        images=options.images,
        data_root=options.data_root,
        output=options.output,
    )
    print(f"wrote {_short(path)}")
    return 0


# data -----------------------------------------------------------------------------------------


def data(argv: Sequence[str]) -> int:
    """Draw, describe and check data sets."""
    parser = _parser(
        "data",
        "draw: draw the embedded data set.\n"
        "stats: counts, lengths and vocabulary coverage of each split.\n"
        "check: open every image; name broken and missing ones, empty captions, and images that\n"
        "       stand in two splits. The exit status is 1 where something is wrong.",
        "  captioner data draw\n"
        "  captioner data stats data=flickr8k data.root=~/flickr8k\n"
        "  captioner data check data=coco data.root=/data/coco --format json\n",
    )
    parser.add_argument("job", choices=("draw", "stats", "check"))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data=NAME, data.root=…, tokenizer=… (default: the embedded set); seed=… for draw",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)

    from captioner.config import compose, make
    from captioner.data import prepare, read_records, shapes

    config = compose(options.overrides)
    if options.job == "draw":
        if config["data"]["format"] != "shapes":
            raise ValueError(f"only data=shapes is drawn, not {config['data']['format']!r}")
        seed = config["seed"] if any(o.startswith("seed=") for o in options.overrides) else 0
        print(f"wrote {_short(shapes.draw(Path(config['data']['root']).expanduser(), seed=seed))}")
        return 0
    reading = make(read_records, "data", config["data"])
    if options.job == "stats":
        numbers = prepare.statistics(reading, config["tokenizer"]["name"])
        if options.format == "json":
            return _print_json(numbers)
        prepare.print_statistics(numbers)
        return 0
    report = prepare.check(reading)
    if options.format == "json":
        _print_json(report.as_dict())
    else:
        prepare.print_report(report)
    return 0 if report.sound else 1


# completion -----------------------------------------------------------------------------------


def completion(argv: Sequence[str]) -> int:
    """Print a shell function that completes verbs, overrides and files."""
    parser = _parser(
        "completion",
        "Print tab completion for a shell: verbs, groups, options and values of train, files.",
        '  eval "$(captioner completion bash)"\n'
        '  eval "$(captioner completion zsh)"\n'
        "  captioner completion fish | source\n",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    options = parser.parse_args(argv)
    verbs = " ".join(VERBS)
    print(_COMPLETION[options.shell].replace("VERBS", verbs), end="")
    return 0


_BASH = """\
_captioner() {
    local word="${COMP_WORDS[COMP_CWORD]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "VERBS" -- "$word"))
    elif [ "${COMP_WORDS[1]}" = train ]; then
        local line="${COMP_LINE/ train/}"
        COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" captioner train -sc query=bash))
        [[ "${COMPREPLY[0]}" == *= || "${COMPREPLY[0]}" == *. ]] && compopt -o nospace
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _captioner captioner
"""
_COMPLETION = {
    "bash": _BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH,
    "fish": """\
complete -c captioner -n __fish_use_subcommand -f -a "VERBS"
complete -c captioner -n "__fish_seen_subcommand_from train" -f -a '(
    set -lx COMP_LINE (string replace " train" "" -- (commandline -cp))
    captioner train -sc query=fish)'
""",
}


# What the verbs share -------------------------------------------------------------------------


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        help="of bleu, rouge-l, cider-d, cider, meteor, spice, diversity, clip (default all)",
    )


def _metrics(names: str | None) -> list[str]:
    """The metrics that a comma-separated list names; an unknown one is told before the work."""
    from captioner.config import pick
    from captioner.metrics import METRICS

    chosen = list(METRICS) if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        pick(METRICS, name, "--metrics")
    return chosen


def _print_table(title: str, rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    print(title)
    Console().print(table)


def _print_json(value: Any) -> int:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _short(path: Path) -> str:
    """A path as short as it can be told from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a model: captioner train experiment=demo"),
    "evaluate": (evaluate, "decode a split freely and score it"),
    "score": (score, "score captions that are already there"),
    "compare": (compare, "compare evaluated runs, with intervals and tests"),
    "caption": (caption, "caption image files"),
    "average": (average, "average the weights of checkpoints of one run"),
    "report": (report, "write one HTML page about an evaluation"),
    "data": (data, "draw, describe and check data sets"),
    "completion": (completion, "tab completion for bash, zsh and fish"),
}
