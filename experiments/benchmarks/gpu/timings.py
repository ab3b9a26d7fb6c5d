"""The timed rows: recurrence, training step, decoding, features, a whole training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from paired import compare, count_flops, report_value
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from workload import Sizes, draw_batch, draw_lengths, loops, take_turns, tf32, wait, with_loop

import captioner
from captioner.data.batches import Batch
from captioner.data.features import cache_features
from captioner.data.records import Record
from captioner.data.shapes import draw
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.decoders.up_down import UpDown
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.models.precision import multiplies_bf16
from captioner.models.recurrence.unroll import Recurrence
from captioner.tokenizers import build_tokenizer
from captioner.training.objectives.cross_entropy import CrossEntropy
from captioner.training.objectives.objective import Objective
from captioner.training.objectives.self_critical import SelfCritical

Rows = Iterator[dict[str, Any]]


def _backward(
    module: nn.Module, inputs: Tensor, run: Callable[[Tensor], Tensor], *, half: bool
) -> Callable[[], Any]:
    """Forward, and backward to the inputs and all parameters."""
    given = (inputs, *module.parameters())

    def work() -> None:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
            outputs = run(inputs)
        torch.autograd.grad(outputs, given, torch.ones_like(outputs))

    return work


def recurrence(sizes: Sizes, device: torch.device) -> Rows:
    """Our loops on real lengths, compared with nn.LSTM packed, padded and at full length.

    Both sides multiply in the same precision: cuDNN uses TF32 unless it is turned off.
    """
    width = sizes.hidden
    halves = ("bf16",) if multiplies_bf16(device.type) else ()
    for batch in sizes.batches:
        words = draw_lengths(batch, more=2)  # X_0 and <start>
        packing = Packing.of(words, device)
        longest = int(words.max())
        for precision in ("fp32", "tf32", *halves):
            half = precision == "bf16"
            peer = nn.LSTM(width, width, batch_first=True).to(device)
            ours = Recurrence(cell="lstm", input_size=width, hidden_size=width).to(device)
            padded, full = (
                torch.randn(batch, steps, width, device=device, requires_grad=True)
                for steps in (longest, sizes.full)
            )

            def packed(x: Tensor, peer: nn.Module = peer, words: Tensor = words) -> Tensor:
                rows = pack_padded_sequence(x, words, batch_first=True, enforce_sorted=False)
                return peer(rows)[0].data

            def real(x: Tensor, ours: Any = ours, packing: Packing = packing) -> Tensor:
                state = ours.zeros(len(packing.order))
                return ours(packing.pack(x), state, sizes=packing.sizes)[0]

            tasks = {
                "packed": _backward(peer, padded, packed, half=half),
                "padded": _backward(peer, padded, lambda x, peer=peer: peer(x)[0], half=half),
                "full length": _backward(peer, full, lambda x, peer=peer: peer(x)[0], half=half),
            }
            for name in loops(device):
                work = _backward(ours, padded, real, half=half)
                tasks[name] = with_loop(name, work)
            with tf32(precision == "tf32"):
                seconds = take_turns(tasks, sizes, device)
            for name in loops(device):
                for other, goal in (("packed", 0.35), ("padded", 1.0), ("full length", None)):
                    label = f"B={batch}, {precision}, {name} / nn.LSTM {other}"
                    yield compare(label, seconds[name], seconds[other], times=False, goal=goal)


class Tutorial(nn.Module):
    """The usual decoder: modules of torch.nn on packed sequences."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden
        self.image, self.words = (
            nn.Linear(sizes.features, width),
            nn.Embedding(sizes.vocabulary, width),
        )
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.output = nn.Linear(width, sizes.vocabulary)

    def forward(self, features: Tensor, inputs: Tensor, words: Tensor) -> Tensor:
        sequence = torch.cat([self.image(features).unsqueeze(1), self.words(inputs)], dim=1)
        packed = pack_padded_sequence(sequence, words + 1, batch_first=True, enforce_sorted=False)
        return self.output(self.lstm(packed)[0].data)


def _tutorial_step(sizes: Sizes, device: torch.device, batch: Batch, words: Tensor) -> Any:
    decoder = Tutorial(sizes).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    of_image = torch.full((len(words), 1), IGNORED, device=device)
    answers = torch.cat([of_image, batch.targets], dim=1)  # [B, 1 + T]

    def work() -> float:
        logits = decoder(batch.source.pooled, batch.inputs, words)
        packed = pack_padded_sequence(answers, words + 1, batch_first=True, enforce_sorted=False)
        loss = criterion(logits, packed.data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return work


CROSS_ENTROPY = CrossEntropy(None, None)  # type: ignore[arg-type]


def _our_step(
    decoder: nn.Module,
    batch: Batch,
    objective: Objective = CROSS_ENTROPY,
    *,
    half: bool,
) -> Callable[[], Any]:
    """A step as in ``LitCaptioner``: the loss is not read."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, fused=True)
    model = CaptioningModel(nn.Identity(), decoder)  # type: ignore[arg-type]

    def work() -> None:
        with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=half):
            loss = objective.outcome(model, batch, 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimizer.step()

    return work


def _show_tell(sizes: Sizes) -> ShowTell:
    return ShowTell(
        vocabulary_size=sizes.vocabulary,
        feature_size=sizes.features,
        embedding_size=sizes.hidden,
        hidden_size=sizes.hidden,
        dropout=0.0,
    )


def step(sizes: Sizes, device: torch.device) -> Rows:
    """A training step of X_0 beside the tutorial's."""
    for count in sizes.steps:
        words = draw_lengths(count, more=1, seed=1)  # <end>
        source, inputs, targets = draw_batch(words, sizes)
        source = Features(source.pooled)
        pooled = Batch(source, torch.arange(count), inputs, targets, []).to(device)
        tasks = {"tutorial": _tutorial_step(sizes, device, pooled, words)}
        ways = [(name, half) for name in loops(device) for half in (False, True)]
        for name, half in ways:
            work = _our_step(_show_tell(sizes).to(device), pooled, half=half)
            tasks[f"{name}, {half}"] = with_loop(name, work)
        seconds = take_turns(tasks, sizes, device)
        for name, half in ways:
            label = f"step B={count}, {'bf16' if half else 'fp32'}, {name} / tutorial fp32"
            own = seconds[f"{name}, {half}"]
            yield compare(label, own, seconds["tutorial"], times=False, goal=0.35)


ATTENDING = {"soft attention": ShowAttendTell, "Up-Down": UpDown}


def attention(sizes: Sizes, device: torch.device) -> Rows:
    """Steps of decoders with attention, by cross-entropy and self-critical, and by graphs."""
    count, half = sizes.steps[0], multiplies_bf16(device.type)
    words = draw_lengths(count, more=1, seed=1)  # <end>
    source, inputs, targets = draw_batch(words, sizes)
    batch = Batch(source, torch.arange(count), inputs, targets, []).to(device)
    rewarded, records = _rewards(sizes, targets)
    for name, kind in ATTENDING.items():
        for objective, given in (
            (CROSS_ENTROPY, batch),
            (rewarded, batch._replace(records=records)),
        ):
            tasks = {}
            for loop in {"plain", "graphs"}.intersection(loops(device)):
                decoder = _attending(kind, sizes).to(device)
                tasks[loop] = with_loop(loop, _our_step(decoder, given, objective, half=half))
            seconds = take_turns(tasks, sizes, device)
            label = f"{name}, B={count}{', self-critical' if objective is rewarded else ''}"
            yield report_value(f"{label}, plain", min(seconds["plain"]), "s")
            if "graphs" in seconds:
                yield compare(
                    f"{label}, graphs / plain",
                    seconds["graphs"],
                    seconds["plain"],
                    times=False,
                    goal=0.5,
                )


def _attending(kind: Any, sizes: Sizes) -> nn.Module:
    decoder: nn.Module = kind(
        vocabulary_size=sizes.vocabulary,
        feature_size=sizes.features,
        embedding_size=sizes.hidden,
        hidden_size=sizes.hidden,
        score="dot",
        dropout=0.0,
    )
    return decoder


def _rewards(sizes: Sizes, targets: Tensor) -> tuple[SelfCritical, list[Record]]:
    """The objective with these captions as references, one for each image, and their records."""
    tokenizer = build_tokenizer(
        [" ".join(f"w{number}" for number in range(4, sizes.vocabulary))], name="word", min_count=1
    )
    records = [
        Record("", str(row), (" ".join(f"w{n}" for n in caption if n != IGNORED),), "train")
        for row, caption in enumerate(targets.tolist())
    ]
    longest = DecodingOptions(max_length=targets.shape[1])
    objective = SelfCritical(tokenizer, longest, temperature=0.3)
    objective.prepare(records)
    return objective, records


def decoding(sizes: Sizes, device: torch.device) -> Rows:
    """Beam search of 5, compared with its matrix products alone, computed as large products."""
    decoder = _show_tell(sizes).to(device).eval()
    features = Features(torch.randn(sizes.images, sizes.features, device=device))
    stepper = decoder.stepper()

    @torch.inference_mode()
    def search() -> None:
        state = stepper.start(features)
        options = DecodingOptions(beam_size=5, max_length=13, min_length=11)
        decode(stepper.step, state, start=1, end=2, options=options, banned=(0, 1, 3))

    flops = count_flops(search)
    rows, inner, columns = 5 * sizes.images, sizes.hidden, sizes.vocabulary
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    tasks = {"search": search, "product": lambda: torch.mm(a, b)}
    seconds = take_turns(tasks, sizes, device)
    alone = [flops / (2 * rows * inner * columns) * value for value in seconds["product"]]
    label = f"beam 5, {sizes.images} images, fp32 / its products"
    yield compare(label, seconds["search"], alone, times=False, goal=1.15)


def features(sizes: Sizes, device: torch.device) -> Rows:
    """Images per second from files into the cache, and of the encoder alone."""
    encoder = captioner.load(device=str(device)).encoders[0]
    side = encoder.transform.size
    pixels = torch.randint(0, 256, (min(64, sizes.files), 3, side, side), dtype=torch.uint8)
    given = pixels.to(device).float()

    @torch.inference_mode()
    def encode() -> None:
        encoder(given)

    seconds = take_turns({"encoder": encode}, sizes, device)["encoder"]
    yield report_value(f"{encoder.network} alone", len(given) / min(seconds), "/s")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), seed=0, train=sizes.files, dev=1, test=1, size=224, progress=False)
        files = [str(file) for file in sorted(Path(folder).rglob("*.png"))[: sizes.files]]
        started = time.perf_counter()
        cache_features(encoder, files, Path(folder) / "cache", progress=False)
        speed = len(files) / (time.perf_counter() - started)
    yield report_value(f"{encoder.network}, files to cache", speed, "/s", goal=2000, at_least=True)


def whole_training(sizes: Sizes, device: torch.device) -> Rows:
    """All steps of a training of X_0 on as many captions as Flickr8k has, without validation.

    Batches of 128 captions of similar length come from the CPU, as from the cache.
    """
    words = draw_lengths(sizes.captions, more=1, seed=2).sort().values
    parts = words.split(min(128, sizes.captions // 2))
    batches = []
    for part in parts:
        source, inputs, targets = draw_batch(part, sizes._replace(positions=1))
        batches.append(Batch(Features(source.pooled), torch.arange(len(part)), inputs, targets, []))
    for name in loops(device):
        decoder = _show_tell(sizes).to(device)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, fused=True)
        objective, model = CrossEntropy(None, None), CaptioningModel(nn.Identity(), decoder)  # type: ignore[arg-type]

        def train(decoder: Any = decoder, optimizer: Any = optimizer, model: Any = model,
                  objective: Any = objective) -> None:  # fmt: skip
            for _ in range(sizes.epochs):
                for place in torch.randperm(len(batches)).tolist():
                    batch = batches[place].to(device)
                    with torch.autocast(device.type, torch.bfloat16):
                        loss = objective.outcome(model, batch, 0.0).loss
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
                    optimizer.step()
            wait(device)

        started = time.perf_counter()
        with_loop(name, train)()
        label = f"{sizes.epochs} epochs of {sizes.captions:,} captions, bf16, {name}"
        yield report_value(label, time.perf_counter() - started, "s", goal=60)
