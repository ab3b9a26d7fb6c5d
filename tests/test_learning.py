"""Learning: every cell memorises eight images to their exact captions, decoded freely."""

import pytest
import torch

from captioner.data.datamodule import pad
from captioner.decoding import DecodingOptions, decode
from captioner.losses import cross_entropy
from captioner.models import CELLS, Features
from captioner.models.recurrent import ShowTell
from captioner.tokenizers import build_tokenizer

CAPTIONS = [
    "a red dog runs over the green grass",
    "a red dog sleeps on the green grass",
    "two boys play in the water",
    "two boys play with a ball in the park",
    "a ball",
    "a woman in a blue coat is waiting for a bus at night",
    "the man 's hat is red",
    "a man climbs a rock",
]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_eight_images_are_memorised(cell: str, layers: int) -> None:
    tokenizer = build_tokenizer(CAPTIONS, name="word", min_count=1)
    words = tokenizer.vocabulary
    decoder = ShowTell(
        vocabulary_size=len(words),
        feature_size=10,
        cell=cell,
        embedding_size=24,
        hidden_size=48,
        layers=layers,
        dropout=0.0,
    )
    images = Features(torch.randn(len(CAPTIONS), 10))
    inputs, targets = pad([tokenizer.encode(text) for text in CAPTIONS], tokenizer)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.005)
    for _ in range(400):
        loss = cross_entropy(decoder(images, inputs), targets, label_smoothing=0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    decoder.eval()
    for beam_size in (1, 3):
        with torch.no_grad():
            found = decode(
                decoder.step,
                decoder.start(images),
                start=words.start,
                end=words.end,
                options=DecodingOptions(beam_size=beam_size),
                banned=(words.pad, words.start, words.unknown),
            )
        assert [tokenizer.decode(best[0].tokens) for best in found] == [
            tokenizer.join(tokenizer.split(text)) for text in CAPTIONS
        ]
