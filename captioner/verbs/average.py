"""Average the weights of checkpoints of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.verbs.terminal import add_plugin, build_parser, new_folder, plug_in, wrote


def run(argv: Sequence[str]) -> int:
    """Average the weights of checkpoints of one run."""
    parser = build_parser(
        "average",
        "Average the weights of several checkpoints of one run into a new checkpoint, which every\n"
        "other verb accepts. Of a run folder, the kept epochs are averaged (callbacks.keep=5).",
        "  captioner average runs/demo\n"
        "  captioner average runs/demo/checkpoints/epoch-0[45].ckpt --output mean.ckpt\n",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or checkpoints")
    parser.add_argument(
        "--output", metavar="FILE", help="a new file (default average.ckpt next to the first)"
    )
    add_plugin(parser)
    options = parser.parse_intermixed_args(argv)
    plug_in(options)

    from captioner.checkpoints import checkpoint

    paths = [path for run in options.runs for path in checkpoint.average_files(run)]
    output = Path(options.output) if options.output else paths[0].parent / "average.ckpt"
    if options.output is None and output.is_symlink():  # perhaps to a place outside of the run
        raise ValueError(
            f"{output} already exists as a link; delete it, or choose another --output"
        )
    created = new_folder(output)
    checkpoint.average(paths, output)
    print(f"averaged {', '.join(path.name for path in paths)}\n{wrote(output, created)}")
    return 0
