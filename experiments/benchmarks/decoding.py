"""Time of decoding, compared with the usual code, with a trained model in the same process.

Each round decodes the same dev images with every implementation in turn. The bound is the ratio if
the decoded rows cost only their matrix products, at the speed of a large product. Each row contains
the fraction of captions that are equal to those of the other implementation: in fp32 all must be.

    python experiments/benchmarks/decoding.py RUN
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from paired import (
    LARGE,
    compare,
    finish,
    is_measured,
    make_parser,
    product,
    run_guarded,
    start,
    take_turns,
)
from torch import Tensor

import captioner
from captioner.api import Captioner
from captioner.config import make
from captioner.data.cache import cache_home
from captioner.data.features import cache_features
from captioner.data.read import read_records
from captioner.generation import generate, make_steppers
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.features import Features

BEAM, BATCH, MANY, IMAGES, MOST = 5, 32, 128, 256, 30
NEVER = [0, 1, 3]  # <pad>, <start>, <unk>
Captions = list[tuple[int, ...]]


class Row(NamedTuple):
    """An implementation, the one it is compared with, and the goal: how many times as fast."""

    way: str
    peer: str
    goal: float


ROWS = {
    "beam 5, batches of 32": Row("32", "loop", 10),
    "beam 5, batches of 32, bf16": Row("32, bf16", "loop", 15),
    "beam 5, batches of 128": Row("128", "loop", 10),
    "beam 5, batches of 128, bf16": Row("128, bf16", "loop", 15),
    "beam 5, one image": Row("1", "loop", 2),
    "beam 5, batches of 32, compared with full tables": Row("32", "full tables", 6),
    "greedy, batches of 256": Row("greedy", "greedy loop", 25),
}


def image_by_image(decoder: Any, features: Features, end: int, start: int) -> Captions:
    """The usual loop: one image at a time, hypotheses as rows, complete distributions."""
    captions = []
    for image in range(len(features.pooled)):
        state = decoder.start(features.rows(torch.tensor([image])))
        tokens, totals = torch.tensor([start]), torch.zeros(1)
        prefixes: list[list[int]] = [[]]
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
                    ended.append((value, prefixes[parent]))
            live = live[:BEAM]
            if len(ended) >= BEAM:
                break
            kept = torch.tensor([parent for _, parent, _ in live])
            state = {name: tensor[kept] for name, tensor in state.items()}
            prefixes = [[*prefixes[parent], word] for _, parent, word in live]
            tokens = torch.tensor([word for _, _, word in live])
            totals = torch.tensor([value for value, _, _ in live])
        captions.append(tuple(max(ended)[1] if ended else prefixes[0]))
    return captions


def full_tables(decoder: Any, features: Features, end: int, start: int) -> Captions:
    """Batched beam search as in a well-known code base: all candidates are sorted, the
    distributions of all steps are stored and reordered with the beams, and no image stops early."""
    images = len(features.pooled)
    state = {n: t.repeat_interleave(BEAM, 0) for n, t in decoder.start(features).items()}
    tokens = torch.full((images * BEAM,), start)
    totals = torch.zeros(images, BEAM)
    prefixes = torch.zeros(images, BEAM, 0, dtype=torch.long)  # [B, K, t]
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
        prefixes = prefixes.gather(1, parents[:, :, None].expand(-1, -1, t))
        prefixes = torch.cat([prefixes, words[:, :, None]], dim=2)  # [B, K, t + 1]
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
                    done[image].append((float(best[image, beam]), prefixes[image, beam].tolist()))
                    totals[image, beam] = -1000.0
        tokens = words.flatten()
    return [tuple(word for word in max(ended)[1] if word != end) for ended in done]


class Ways:
    """All implementations on the same features; each stores its captions and counts its rows."""

    def __init__(self, model: Captioner, features: Features) -> None:
        self.model, self.features = model, features
        self.captions: dict[str, Captions] = {}
        self.rows: dict[str, int] = {}
        self.counted = 0
        beam = model.decoding(beam_size=BEAM, length_penalty=0.0, max_length=MOST)
        greedy = model.decoding(beam_size=1, max_length=MOST)
        in_bf16 = beam.changed(beam_size=BEAM, precision="bf16")
        self.rows_wanted = {
            name: row for name, row in ROWS.items() if is_measured(name, half="bf16" in name)
        }
        needed = {way for row in self.rows_wanted.values() for way in (row.way, row.peer)}
        self.steppers = {
            options.precision: [
                stepper._replace(step=self.with_count(stepper.step))
                for stepper in make_steppers([model.model], options)
            ]
            for options in (beam, in_bf16)
            if options is beam or "32, bf16" in needed
        }
        words = model.tokenizer.vocabulary
        decoder = model.model.decoder
        ways = {
            "loop": lambda: image_by_image(decoder, features, words.end, words.start),
            "full tables": lambda: [
                caption
                for part in self.parts(BATCH)
                for caption in full_tables(decoder, part, words.end, words.start)
            ],
            "32": lambda: self.ours(beam, BATCH),
            "32, bf16": lambda: self.ours(in_bf16, BATCH),
            "128": lambda: self.ours(beam, MANY),
            "128, bf16": lambda: self.ours(in_bf16, MANY),
            "1": lambda: self.ours(beam, 1),
            "greedy loop": lambda: self.ours(greedy, 1, alone=True),
            "greedy": lambda: self.ours(greedy, IMAGES),
        }
        self.tasks = {
            **{name: self.with_captions(name, way) for name, way in ways.items() if name in needed},
            "product": product(half=False),
        }
        if "32, bf16" in needed:
            self.tasks["product, bf16"] = product(half=True)

    def with_count(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def work(tokens: Tensor, *rest: Any) -> Any:
            self.counted += len(tokens)
            return step(tokens, *rest)

        return work

    def with_captions(self, name: str, way: Callable[[], Captions]) -> Callable[[], None]:
        def work() -> None:
            self.counted = 0
            self.captions[name] = way()
            self.rows[name] = self.counted

        return work

    def parts(self, size: int) -> list[Features]:
        images = torch.arange(len(self.features.pooled))
        return [self.features.rows(batch) for batch in images.split(size)]

    def ours(self, options: Any, size: int, *, alone: bool = False) -> Captions:
        """captioner's search; `alone` does not reuse tables and weight layouts between images."""
        steppers = None if alone else self.steppers[options.precision]
        captions: Captions = []
        for part in self.parts(size):
            of_part = generate(
                [self.model.model], [part], self.model.tokenizer, options, steppers=steppers
            )
            captions += [hypotheses[0].tokens for hypotheses in of_part]
        return captions


@torch.inference_mode()
def main() -> None:
    arguments = make_parser(__doc__, rounds=5)
    arguments.add_argument("run", metavar="RUN", help="a run folder whose dataset is available")
    options = arguments.parse_args()
    model = captioner.load(options.run, device="cpu")
    records = make(read_records, "data", model.config["data"]).split("dev")[:IMAGES]
    images = [record.image for record in records]
    decoder = model.model.decoder
    if not isinstance(decoder, ShowTell) or len(images) < IMAGES:
        raise ValueError(
            f"{options.run}: {type(decoder).__name__}, {len(images)} dev images; a ShowTell and "
            f"{IMAGES} or more are needed"
        )
    size = len(model.tokenizer.vocabulary)
    about = start(options, images=len(images), split="dev", vocabulary=size)
    features = cache_features(model.model.encoder, images, cache_home()).get(images)
    ways = Ways(model, features)
    seconds = take_turns(ways.tasks, options.rounds)
    matrices = [cell.of_hidden.weight for cell in decoder.recurrence.cells]
    of_row = 2 * sum(matrix.numel() for matrix in (*matrices, decoder.output.weight))
    rows = []
    for name, (way, peer, goal) in ways.rows_wanted.items():
        large = seconds["product, bf16" if "bf16" in way else "product"]
        same = sum(a == b for a, b in zip(ways.captions[peer], ways.captions[way]))
        rows.append(
            compare(
                name,
                seconds[way],
                seconds[peer],
                times=True,
                least=[of_row * ways.rows[way] / LARGE * value for value in large],
                goal=goal,
                images=len(images),
                rows_per_image=ways.rows[way] / len(images),
                same_captions=same / len(images),
            )
        )
    finish(about, rows, options.json)
    for row in rows:
        print(f"{row['row']}: {row['same_captions']:.1%} of the captions are equal")


if __name__ == "__main__":
    run_guarded(main)
