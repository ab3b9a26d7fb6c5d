"""Decode a split freely and score the captions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.process import printable
from captioner.verbs.terminal import (
    add_config_dir,
    add_metrics,
    add_plugin,
    add_split,
    build_parser,
    parse_metrics,
    plug_in,
    print_json,
    print_table,
    short,
)

if TYPE_CHECKING:
    from captioner.api import Captioner
    from captioner.config import Config
    from captioner.evaluation.evaluate import Evaluation


def run(argv: Sequence[str]) -> int:
    """Decode a split freely and score the captions."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    plug_in(options)

    from captioner import runs as run_folders
    from captioner.api import Captioner
    from captioner.checkpoints.checkpoint import run_folder
    from captioner.evaluation.evaluate import evaluate, result_folder, write_config

    metrics = parse_metrics(options.metrics)
    runs, overrides = _runs_and_overrides(parser, options)
    captioner = Captioner.load(runs, device=options.device)
    run_folders.require_closed(run_folder(captioner.paths[0]))
    data, decoding, loader = _composed(captioner, overrides, options)
    split = data.pop("split")
    result = evaluate(
        captioner, data=data, decoding=decoding, loader=loader, split=split, metrics=metrics
    )
    folder = result_folder(captioner, decoding, data, split)
    paths = [*result.write(folder), *write_config(captioner)]
    if options.format == "json":
        return print_json({**result.as_dict(), "files": [str(path) for path in paths]})
    _print(result, split, paths)
    return 0


def _runs_and_overrides(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """The models and the overrides among the arguments."""
    runs = [word for word in options.runs if _is_path(word)]
    overrides = [word for word in (*options.runs, *options.overrides) if word not in runs]
    if not runs:
        parser.error("name a run folder or a checkpoint before the overrides")
    if options.split and any(word.startswith("data.split=") for word in overrides):
        parser.error("give --split or data.split=, not both")
    return runs, overrides


def _is_path(word: str) -> bool:
    """Whether an argument names a run and is not an override, whose key has no slash."""
    key, equals, _ = word.partition("=")
    return not equals or "/" in key or Path(word).exists()


def _composed(
    captioner: Captioner, overrides: Sequence[str], options: argparse.Namespace
) -> tuple[Config, Config, Config]:
    """The model's data (with a split), decoding and loader options, changed by the overrides."""
    from captioner.checkpoints.places import confined
    from captioner.config import override
    from captioner.overrides import parse

    named = [change.key_or_group for change in parse(overrides)]
    base = confined({key: captioner.config[key] for key in ("data", "loader")}, named)
    base["decoding"] = captioner.options.as_dict()
    extra = {"data": {"split": options.split or "dev"}}  # an option of only this verb
    groups = override(base, overrides, config_dir=options.config_dir, extra=extra)
    experiments = [word for word in overrides if word.lstrip("+").startswith("experiment=")]
    if experiments:
        remaining = [word for word in overrides if word not in experiments]
        without = override(base, remaining, config_dir=options.config_dir, extra=extra)
        print(
            f"captioner: note: {_describe_changes(experiments[-1], without, groups)}",
            file=sys.stderr,
        )
    return groups["data"], groups["decoding"], groups["loader"]


def _describe_changes(experiment: str, without: Config, groups: Config) -> str:
    """What an experiment changed, in one line: its other options belong to the training."""
    changed = [
        f"{group}.{name}={value}"
        for group, values in groups.items()
        for name, value in values.items()
        if without[group].get(name) != value
    ]
    return (
        f"{experiment} changes {', '.join(changed) or 'nothing'} here; an evaluation takes only "
        "data, loader and decoding from it, the model stays as it was trained"
    )


def _print(result: Evaluation, split: str, paths: Sequence[Path]) -> None:
    count = len(result.captions)
    rate = count / max(result.seconds, 1e-9)
    print_table(
        f"{split}: {count} image{'' if count == 1 else 's'}, {rate:.0f} captions/s",
        {name: f"{value:.2f}" for name, value in result.scores.values.items()},
    )
    print(result.scores.signature)
    for image in result.skipped:
        print(f"skipped {printable(image)}")
    for metric, reason in result.scores.missing.items():
        print(f"no {metric}: {reason}")
    for path in paths:
        print(f"wrote {short(path)}")
    if missing := result.missing_letters():
        print(f"sheet.png: {missing}")


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(
        "evaluate",
        "Decode a split freely (never teacher-forced), score the captions against all references,\n"
        "and write scores.json, captions.jsonl, statistics.npz and sheet.png into the run folder,\n"
        "by split and decoding.",
        "  captioner evaluate runs/demo\n"
        "  captioner evaluate flickr8k data.root=~/flickr8k --split test\n"
        "  captioner evaluate runs/demo --split test decoding=beam decoding.beam_size=3\n"
        "  captioner evaluate copied.ckpt data.root=~/flickr8k decoding.length_penalty=0.7\n"
        "  captioner evaluate copied.ckpt data=json data.root=~/mine data.split=test\n"
        "  captioner evaluate runs/demo --metrics bleu,cider-d\n"
        "  captioner evaluate runs/a runs/b decoding=beam decoding.ensemble=log_probability\n"
        "  captioner evaluate runs/demo decoding=top_p decoding.captions=5 decoding.seed=1\n",
    )
    parser.decodes = True
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, checkpoint or bundled model (see captioner models); several are decoded "
        "together as an ensemble",
    )
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data.split=dev|test|train, data.root=…, loader.…, decoding=NAME (greedy, beam, "
        "consensus, diverse_beam, sample, top_k, top_p), decoding.… (any option of captioner "
        "caption)",
    )
    add_split(parser, "the same as data.split= (default dev)")
    add_metrics(parser)
    add("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    add("--format", choices=("text", "json"), default="text", help="of what is printed")
    add_plugin(parser)
    add_config_dir(parser)
    return parser
