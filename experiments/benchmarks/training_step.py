"""Time of a training step, compared with the step as in tutorials.

The tutorial's step: nn.Embedding, the image feature in front, nn.LSTM on a PackedSequence,
nn.Linear on its data, CrossEntropyLoss, Adam; in float32. captioner's step: ShowTell, its loss and
fused AdamW, as in ``LitCaptioner``. Both use the same batch, B = 128 captions, and have the same
loss.

Then Up-Down over 81 positions with the gradients of its weights and values collected
(models/decoders/deferred_gradients.py), compared with the same decoder with plain autograd.

    CAPTIONER_KEEP_MEMORY=1 python experiments/benchmarks/training_step.py --flickr8k ~/flickr8k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from paired import (
    Pair,
    add_captions,
    compare_times,
    draw_lengths,
    finish,
    make_parser,
    run_guarded,
    start,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioner.models.decoders.show_tell import ShowTell
from captioner.models.decoders.up_down import UpDown
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.models.precision import multiplies_bf16
from captioner.training.losses import cross_entropy

B, D, E, H, P = 128, 512, 512, 512, 81
GOALS = {3000: (0.75, 0.30), 10_000: (0.75, 0.38)}  # float32, bfloat16


class Tutorial(nn.Module):
    """The usual decoder: modules of torch.nn on packed sequences."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.image = nn.Linear(D, E)
        self.words = nn.Embedding(vocabulary, E)
        self.lstm = nn.LSTM(E, H, batch_first=True)
        self.output = nn.Linear(H, vocabulary)

    def forward(self, features: Tensor, inputs: Tensor, words: Tensor) -> Tensor:
        sequence = torch.cat([self.image(features).unsqueeze(1), self.words(inputs)], dim=1)
        packed = pack_padded_sequence(sequence, words + 1, batch_first=True, enforce_sorted=False)
        return self.output(self.lstm(packed)[0].data)


def tutorial_step(
    decoder: Tutorial, features: Tensor, inputs: Tensor, targets: Tensor, words: Tensor
) -> Callable[[], float]:
    """One step; as in tutorials, the logits of X_0 are computed but have no loss."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    of_image = torch.full((len(targets), 1), IGNORED)
    answers = torch.cat([of_image, targets], dim=1)  # [B, 1 + T]

    def work() -> float:
        logits = decoder(features, inputs, words)
        packed = pack_padded_sequence(answers, words + 1, batch_first=True, enforce_sorted=False)
        loss = criterion(logits, packed.data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return work


def our_step(
    decoder: Any, features: Features, inputs: Tensor, targets: Tensor, *, half: bool
) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def work() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            packing = Packing.of((targets != IGNORED).sum(1))
            logits = decoder(features, inputs, packing)
            loss = cross_entropy(logits, packing.pack(targets), label_smoothing=0.0, in_place=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return work


def copy_weights(decoder: Tutorial, vocabulary: int) -> ShowTell:
    """ShowTell with the weights of the tutorial's decoder, whose gate order is i, f, C~, o."""
    copied = ShowTell(
        vocabulary_size=vocabulary, feature_size=D, embedding_size=E, hidden_size=H, dropout=0.0
    )
    cell, lstm = copied.recurrence.cells[0], decoder.lstm
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    pairs = (
        (cell.of_input.weight, lstm.weight_ih_l0),
        (cell.of_hidden.weight, lstm.weight_hh_l0),
        (cell.of_input.bias, bias),
    )
    with torch.no_grad():
        for target, source in pairs:
            i, f, candidate, o = source.chunk(4)
            target.copy_(torch.cat([f, i, candidate, o]))
        for name in ("image", "words", "output"):
            getattr(copied, name).load_state_dict(getattr(decoder, name).state_dict())
    return copied


def up_down(half: bool, inputs: Tensor, targets: Tensor) -> tuple[dict[str, Any], list[Pair]]:
    """The same step of Up-Down with collected gradients and with plain autograd."""
    features = Features(torch.randn(B, D), torch.randn(B, P, D))
    ways = {}
    for defers in (True, False):
        torch.manual_seed(0)
        decoder = UpDown(
            vocabulary_size=3000,
            feature_size=D,
            embedding_size=E,
            hidden_size=H,
            score="dot",
            dropout=0.0,
        )
        decoder.defers = defers
        ways[defers] = our_step(decoder, features, inputs, targets, half=half)
    name = "bf16" if half else "fp32"
    tasks = {f"collected, {name}": ways[True], f"autograd, {name}": ways[False]}
    return tasks, [Pair(f"Up-Down, {name}: collected, compared with autograd", *tasks, half=half)]


def batch(words: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, D], inputs and targets [B, T]; token frequencies follow Zipf's law."""
    frequencies = 1.0 / torch.arange(4, vocabulary).float()
    tokens = 4 + torch.multinomial(frequencies, len(words) * int(words.max()), replacement=True)
    targets = tokens.view(len(words), -1)
    inputs = torch.cat([torch.ones(len(words), 1, dtype=torch.long), targets[:, :-1]], dim=1)
    real = torch.arange(targets.shape[1]) < words[:, None]
    return (
        torch.randn(len(words), D),
        inputs.where(real, 0),
        targets.where(real, IGNORED),
    )


def main() -> None:
    options = add_captions(make_parser(__doc__, rounds=11)).parse_args()
    about, rows = start(options), []
    words = draw_lengths(options.flickr8k, B, more=1)  # <start>
    for vocabulary, (goal, half_goal) in GOALS.items():
        features, inputs, targets = batch(words, vocabulary)
        tutorial = Tutorial(vocabulary)
        peers = [copy_weights(tutorial, vocabulary) for _ in range(2)]
        tasks = {
            "tutorial": tutorial_step(tutorial, features, inputs, targets, words),
            "ours": our_step(peers[0], Features(features), inputs, targets, half=False),
        }
        if multiplies_bf16():
            tasks["ours, bf16"] = our_step(peers[1], Features(features), inputs, targets, half=True)
        losses = [work() for work in tasks.values()]
        assert max(losses[:2]) - min(losses[:2]) < 1e-4, losses
        assert max(losses) - min(losses) < 1e-2, losses  # with bfloat16
        pairs = [
            Pair(f"V={vocabulary}, fp32", "ours", "tutorial", goal),
            Pair(
                f"V={vocabulary}, bf16 compared with fp32",
                "ours, bf16",
                "tutorial",
                half_goal,
                True,
            ),
        ]
        rows += compare_times(tasks, pairs, options.rounds)
        if vocabulary == 3000:
            attending = [up_down(half, inputs, targets) for half in (False, True)]
    for tasks, pairs in attending:
        rows += compare_times(tasks, pairs, options.rounds)
    finish(about, rows, options.json)


if __name__ == "__main__":
    run_guarded(main)
