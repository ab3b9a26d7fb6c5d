"""Learning: every decoder memorizes eight images and decodes their exact captions."""

from itertools import product
from typing import Any

import pytest
import torch

from captioner.data.batches import pad
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.models.decoders.table import DECODERS
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.models.recurrence.table import CELLS
from captioner.tokenizers import build_tokenizer
from captioner.training.losses import cross_entropy

CAPTIONS = [
    "a red dog runs over the grass",
    "a red dog sleeps on the grass",
    "two boys play in the water",
    "two boys play with a ball",
    "a ball",
    "a woman waits for a bus",
    "the man 's hat is red",
    "a man climbs a rock",
]


SIZES = {"embedding_size": 24, "hidden_size": 48, "dropout": 0.0}
DECODED: dict[str, dict[str, Any]] = {}
BASIC = ("rnn", "gru", "lstm")
for cell in CELLS:
    DECODED[f"show_tell x0 {cell} 1"] = {**SIZES, "cell": cell}
for cell, image, layers in product(BASIC, ("x0", "h0", "every", "merge"), (1, 2)):
    if layers == 1 or image == "x0":
        options = {"cell": cell, "image": image, "layers": layers, "tie_weights": image == "every"}
        DECODED[f"show_tell {image} {cell} {layers}"] = {**SIZES, **options}
for cell, name in product(BASIC, ("show_attend_tell", "up_down", "adaptive")):
    score = "dot" if cell == "gru" else "additive"
    options = {"cell": cell, "score": score, "attention_size": 16}
    DECODED[f"{name} {cell}"] = {**SIZES, **options}
SMALL = {"hidden_size": 48, "heads": 4, "layers": 2, "feedforward_size": 96, "dropout": 0.0}
for positions, grid in product(("learned", "sinusoidal"), (True, False)):
    options = {"positions": positions, "grid": grid}
    DECODED[f"transformer {positions} {grid}"] = {**SMALL, **options}


@pytest.mark.parametrize("which", DECODED)
def test_eight_images_are_memorized(which: str) -> None:
    tokenizer = build_tokenizer(CAPTIONS, name="word", min_count=1)
    words = tokenizer.vocabulary
    component = DECODERS[which.split()[0]]
    decoder = component(vocabulary_size=len(words), feature_size=10, **DECODED[which])
    grid = torch.randn(len(CAPTIONS), 4, 10)
    images = Features(torch.randn(len(CAPTIONS), 10), grid)
    inputs, targets = pad([tokenizer.encode(text) for text in CAPTIONS], tokenizer)
    packing = Packing.of((targets != IGNORED).sum(1))
    targets = packing.pack(targets)
    lr = 0.002 if which.startswith("transformer") else 0.008
    if "irnn" in which:  # nothing bounds it: with larger steps it depends on the last digits
        lr = 0.001
    optimizer = torch.optim.Adam(decoder.parameters(), lr=lr)
    for _ in range(3000):
        logits = decoder(images, inputs, packing)
        loss = cross_entropy(logits, targets, label_smoothing=0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if logits.softmax(1).gather(1, targets[:, None]).min() > 0.9:
            break
    decoder.eval()
    for beam_size in (1, 3):
        with torch.no_grad():
            hypotheses = decode(
                decoder.stepper().step,
                decoder.start(images),
                start=words.start,
                end=words.end,
                options=DecodingOptions(beam_size=beam_size, early_stopping=False),
                banned=(words.pad, words.start, words.unknown),
            )
        assert [tokenizer.decode(best[0].tokens) for best in hypotheses] == [
            tokenizer.join(tokenizer.split(text)) for text in CAPTIONS
        ]
