"""How long decoding takes beside the usual ways, on a trained model in the same process.

Each round decodes the same dev images in every way, one way after the other, so that a busy machine
slows them alike; what is reported is the median of the rounds' ratios, with the smallest and the
largest. The bound is the ratio if the rows that are decoded cost no more than their matrix products
at the speed of a large one. In fp32 every way must find the same captions.

    python experiments/benchmarks/decoding.py RUN --threads 1 --json decoding.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from paired import SIDE, product
from torch import Tensor

import captioner
from captioner.api import Captioner
from captioner.config import make
from captioner.data import read_records
from captioner.data.datamodule import cached_features
from captioner.data.records import write_whole
from captioner.models import Features, generate, make_steppers

BEAM, BATCH, LARGE, MOST = 5, 32, 128, 30
NEVER = [0, 1, 3]  # <pad>, <start>, <unk>
Captions = list[tuple[int, ...]]
# What was aimed at: how many times the peer's captions per second.
GOALS = {
    "beam 5, 32 images a batch": 10,
    "beam 5, 32 images a batch, bf16": 15,
    "beam 5, 128 images a batch": 10,
    "beam 5, 128 images a batch, bf16": 15,
    "beam 5, one image": 2,
    "beam 5, 32 images a batch, beside full tables": 6,
    "greedy, 256 images a batch": 25,
}


def image_by_image(decoder: Any, features: Features, end: int, start: int) -> Captions:
    """The usual loop: one image at a time, its beams as rows, every distribution in full."""
    found = []
    for image in range(len(features.pooled)):
        state = decoder.start(features.rows(torch.tensor([image])))
        tokens, totals = torch.tensor([start]), torch.zeros(1)
        said: list[list[int]] = [[]]
        ended: list[tuple[float, list[int]]] = []
        for _ in range(MOST):
            logits, state = decoder.step(tokens, state)
            log_probs = torch.log_softmax(logits, dim=-1)
            log_probs[:, NEVER] = -torch.inf
            scores = totals[:, None] + log_probs  # [k, V]
            best, place = scores.flatten().topk(2 * BEAM)
            parents, words = (place // scores.shape[1]).tolist(), (place % scores.shape[1]).tolist()
            live = []
            for rank, (value, parent, word) in enumerate(zip(best.tolist(), parents, words)):
                if word != end:
                    live.append((value, parent, word))
                elif rank < BEAM:
                    ended.append((value, said[parent]))
            live = live[:BEAM]
            if len(ended) >= BEAM:
                break
            kept = torch.tensor([parent for _, parent, _ in live])
            state = {name: tensor[kept] for name, tensor in state.items()}
            said = [[*said[parent], word] for _, parent, word in live]
            tokens = torch.tensor([word for _, _, word in live])
            totals = torch.tensor([value for value, _, _ in live])
        found.append(tuple(max(ended)[1] if ended else said[0]))
    return found


def full_tables(decoder: Any, features: Features, end: int, start: int) -> Captions:
    """Batched, as the best known code base of the field does it: all candidates are sorted, the
    distributions of all steps are kept and reordered with the beams, and no image stops early."""
    images = len(features.pooled)
    state = {n: t.repeat_interleave(BEAM, 0) for n, t in decoder.start(features).items()}
    tokens = torch.full((images * BEAM,), start)
    totals = torch.zeros(images, BEAM)
    said = torch.zeros(images, BEAM, 0, dtype=torch.long)
    kept: Tensor | None = None
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(images)]
    for t in range(MOST):
        logits, state = decoder.step(tokens, state)
        log_probs = torch.log_softmax(logits, dim=-1)
        log_probs[:, NEVER] = -torch.inf
        log_probs = log_probs.view(images, BEAM, -1)
        scores = totals[:, :, None] + log_probs
        scores = scores[:, :1] if t == 0 else scores
        best, place = scores.flatten(1).sort(1, descending=True)
        best, place = best[:, :BEAM], place[:, :BEAM]
        parents, words = place // log_probs.shape[-1], place % log_probs.shape[-1]
        said = said.gather(1, parents[:, :, None].expand(-1, -1, t))
        said = torch.cat([said, words[:, :, None]], dim=2)
        own = log_probs.gather(1, parents[:, :, None].expand_as(log_probs))[:, :, None]
        if kept is None:
            kept = own
        else:
            kept = kept.gather(1, parents[:, :, None, None].expand_as(kept))
            kept = torch.cat([kept, own], dim=2)  # [B, K, t + 1, V]
        rows = (torch.arange(images)[:, None] * BEAM + parents).flatten()
        state = {name: tensor[rows] for name, tensor in state.items()}
        totals = best.clone()
        for image in range(images):
            for beam in range(BEAM):
                if int(words[image, beam]) == end or t == MOST - 1:
                    done[image].append((float(best[image, beam]), said[image, beam].tolist()))
                    totals[image, beam] = -1000.0
        tokens = words.flatten()
    return [tuple(word for word in max(one)[1] if word != end) for one in done]


class Found(NamedTuple):
    """What a way took and gave in one round, and how many rows our own ways decoded."""

    seconds: float
    captions: Captions
    rows: int = 0


def measure(model: Captioner, features: Features) -> dict[str, Found]:
    """Every way, and the large products, in one round."""
    decoder, words = model.model.decoder, model.tokenizer.vocabulary
    beam = model.decoding(beam_size=BEAM, length_penalty=0.0, max_length=MOST)
    greedy = model.decoding(beam_size=1, max_length=MOST)
    in_bf16 = beam.changed(beam_size=BEAM, precision="bf16")
    rows = 0

    def counting(step: Callable[..., Any]) -> Callable[..., Any]:
        def work(tokens: Tensor, *rest: Any) -> Any:
            nonlocal rows
            rows += len(tokens)
            return step(tokens, *rest)

        return work

    steppers = {
        options.precision: [
            one._replace(step=counting(one.step)) for one in make_steppers([model.model], options)
        ]
        for options in (beam, in_bf16)
    }
    products = {half: product(half=half) for half in (False, True)}

    def ours(options: Any, size: int) -> Captions:
        found: Captions = []
        for first in range(0, len(features.pooled), size):
            part = features.rows(torch.arange(first, min(first + size, len(features.pooled))))
            given = None if options is greedy and size == 1 else steppers[options.precision]
            decoded = generate([model.model], [part], model.tokenizer, options, steppers=given)
            found += [one[0].tokens for one in decoded]
        return found

    ways: dict[str, Callable[[], Captions]] = {
        "loop": lambda: image_by_image(decoder, features, words.end, words.start),
        "full tables": lambda: [
            caption
            for first in range(0, len(features.pooled), BATCH)
            for caption in full_tables(
                decoder,
                features.rows(torch.arange(first, min(first + BATCH, len(features.pooled)))),
                words.end,
                words.start,
            )
        ],
        "beam 5, 32 images a batch": lambda: ours(beam, BATCH),
        "beam 5, 32 images a batch, bf16": lambda: ours(in_bf16, BATCH),
        "beam 5, 128 images a batch": lambda: ours(beam, LARGE),
        "beam 5, 128 images a batch, bf16": lambda: ours(in_bf16, LARGE),
        "beam 5, one image": lambda: ours(beam, 1),
        "greedy loop": lambda: ours(greedy, 1),
        "greedy, 256 images a batch": lambda: ours(greedy, 256),
    }
    result = {}
    for name, way in ways.items():
        rows, started = 0, time.perf_counter()
        captions = way()
        result[name] = Found(time.perf_counter() - started, captions, rows)
    for half, work in products.items():
        work()
        started = time.perf_counter()
        work()
        result[f"product, {half}"] = Found(time.perf_counter() - started, [])
    return result


def bound(one: dict[str, Found], own: str, peer: str, of_row: float) -> float:
    """How many times the peer's captions per second could be had in this round."""
    large = one[f"product, {'bf16' in own}"].seconds
    return one[peer].seconds / (of_row * one[own].rows / (2 * SIDE**3) * large)


PEERS = {
    "beam 5, 32 images a batch": "loop",
    "beam 5, 32 images a batch, bf16": "loop",
    "beam 5, 128 images a batch": "loop",
    "beam 5, 128 images a batch, bf16": "loop",
    "beam 5, one image": "loop",
    "beam 5, 32 images a batch, beside full tables": "full tables",
    "greedy, 256 images a batch": "greedy loop",
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run folder, of a model whose data are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = captioner.load(options.run, device="cpu")
    records = make(read_records, "data", model.config["data"]).split("dev")[: options.images]
    images = [record.image for record in records]
    features = cached_features(model.model.encoder, images, None).get(images)
    rounds = [measure(model, features) for _ in range(options.rounds + 1)][1:]  # the first warms up
    decoder = model.model.decoder
    matrices = [cell.of_hidden.weight for cell in decoder.recurrence.cells]
    of_row = 2 * sum(one.numel() for one in (*matrices, decoder.output.weight))
    rows = []
    for name, peer in PEERS.items():
        own = name.removesuffix(", beside full tables")
        ours, theirs = ([one[way].seconds for one in rounds] for way in (own, peer))
        ratios = [b / a for a, b in zip(ours, theirs)]
        same = sum(a == b for a, b in zip(rounds[0][peer].captions, rounds[0][own].captions))
        rows.append(
            {
                "way": name,
                "captions_per_second": len(images) / statistics.median(ours),
                "peer_per_second": len(images) / statistics.median(theirs),
                "ratio": statistics.median(ratios),
                "smallest": min(ratios),
                "largest": max(ratios),
                "bound": statistics.median(bound(one, own, peer, of_row) for one in rounds),
                "goal": GOALS[name],
                "rows_per_image": rounds[0][own].rows / len(images),
                "same_captions": same / len(images),
            }
        )
    found = {
        "about": {
            "threads": options.threads,
            "images": len(images),
            "vocabulary": len(model.tokenizer.vocabulary),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "rows": rows,
    }
    print(
        "| way | captions/s | peer | ratio | smallest to largest | bound | goal | same captions |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['way']} | {row['captions_per_second']:.0f} | {row['peer_per_second']:.0f} | "
            f"{row['ratio']:.1f} | {row['smallest']:.1f} to {row['largest']:.1f} | "
            f"{row['bound']:.1f} | {row['goal']} | "
            f"{100 * row['same_captions']:.1f} % |"
        )
    if options.json:
        write_whole(options.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
