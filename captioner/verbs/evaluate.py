"""Decode a split freely and score it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.verbs.terminal import (
    add_config_dir,
    add_metrics,
    add_plugin,
    add_split,
    metrics_of,
    parser_of,
    plug_in,
    print_json,
    print_table,
    short,
)


def run(argv: Sequence[str]) -> int:
    """Decode a split freely and score it."""
    parser = parser_of(
        "evaluate",
        "Decode a split freely (never teacher-forced), score it against all references, and write\n"
        "scores.json, captions.jsonl, statistics.npz and sheet.png into the run folder, by split\n"
        "and decoding.",
        "  captioner evaluate runs/demo\n"
        "  captioner evaluate flickr8k data.root=~/flickr8k --split test\n"
        "  captioner evaluate runs/demo --split test decoding=beam decoding.beam_size=3\n"
        "  captioner evaluate copied.ckpt data.root=~/flickr8k decoding.length_penalty=0.7\n"
        "  captioner evaluate copied.ckpt data=json data.root=~/mine data.split=test\n"
        "  captioner evaluate runs/demo --metrics bleu,cider-d\n"
        "  captioner evaluate runs/a runs/b decoding=beam decoding.ensemble=log_probability\n"
        "  captioner evaluate runs/demo decoding=top_p decoding.captions=5 decoding.seed=1\n",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, checkpoint or bundled model (see captioner models); several decode "
        "together",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data.split=dev|test|train, data.root=…, loader.…, decoding=NAME (greedy, beam, "
        "consensus, diverse_beam, sample, top_k, top_p), decoding.… (any option of captioner "
        "caption)",
    )
    add_split(parser, "the same as data.split= (default dev)")
    add_metrics(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of what is printed"
    )
    add_plugin(parser)
    add_config_dir(parser)
    options = parser.parse_intermixed_args(argv)
    plug_in(options)

    from captioner.api import Captioner
    from captioner.config import override
    from captioner.evaluation.evaluate import evaluate, result_folder, write_config

    metrics = metrics_of(options.metrics)
    runs = [one for one in options.runs if _is_path(one)]
    overrides = [one for one in (*options.runs, *options.overrides) if one not in runs]
    if not runs:
        parser.error("name a run folder or a checkpoint before the overrides")
    if options.split and any(one.startswith("data.split=") for one in overrides):
        parser.error("give --split or data.split=, not both")
    captioner = Captioner.load(runs, device=options.device)
    base = {key: captioner.config[key] for key in ("data", "loader")}
    base["decoding"] = captioner.options.as_dict()
    extra = {"data": {"split": options.split or "dev"}}  # an option of this verb alone
    chosen = override(base, overrides, config_dir=options.config_dir, extra=extra)
    data, decoding = chosen["data"], chosen["decoding"]
    split = data.pop("split")
    groups = {"data": data, "decoding": decoding, "loader": chosen["loader"]}
    result = evaluate(captioner, **groups, split=split, metrics=metrics)
    paths = result.write(result_folder(captioner, decoding, data, split))
    paths += write_config(captioner)
    if options.format == "json":
        return print_json({**result.scores.as_dict(), "files": [str(path) for path in paths]})
    rate = len(result.captions) / max(result.seconds, 1e-9)
    print_table(
        f"{split}: {len(result.captions)} images, {rate:.0f} captions/s",
        {name: f"{value:.2f}" for name, value in result.scores.values.items()},
    )
    print(result.scores.signature)
    for metric, reason in result.scores.missing.items():
        print(f"no {metric}: {reason}")
    for path in paths:
        print(f"wrote {short(path)}")
    if lack := result.lacks():
        print(f"sheet.png: {lack}")
    return 0


def _is_path(word: str) -> bool:
    """Whether a word names a run, and is not an override: no key of ours has a slash."""
    key, equals, _ = word.partition("=")
    return not equals or "/" in key or Path(word).exists()
