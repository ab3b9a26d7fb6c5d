"""Models that are tables of probabilities, small enough to enumerate every caption."""

import itertools
from collections.abc import Callable, Sequence

import torch

from captioner.decoding.options import DecodingOptions

PAD, START, END = 0, 1, 2


def table_step(table: torch.Tensor):
    """A model that is a table: logits of the next token by (image, step, last token).

    table: [B, T, V, V]. The state carries the number of each image and the step of each hypothesis.
    """

    def step(tokens: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
        images = state["image.number"]
        of_rows = images.repeat_interleave(len(tokens) // len(images))
        logits = table[of_rows, state["step"], tokens]
        return logits, {**state, "step": state["step"] + 1}

    return step


def start_state(images: int | Sequence[int]) -> dict:
    """The state of the first n images, or of images by their numbers."""
    numbers = torch.tensor(range(images) if isinstance(images, int) else images, dtype=torch.long)
    return {"image.number": numbers, "step": torch.zeros(len(numbers), dtype=torch.long)}


def divisor(options: DecodingOptions, tokens: int) -> float:
    base = tokens if options.length_rule == "power" else (5 + tokens) / 6
    return base**options.length_penalty


def everything(
    table: torch.Tensor,
    image: int,
    options: DecodingOptions,
    banned=(),
    allowed: Callable[[tuple[int, ...]], bool] = lambda body: True,
) -> list:
    """Every caption that ends within max_length and is allowed, with its score, best first."""
    log_probs = torch.log_softmax(table[image], dim=-1)
    vocabulary = table.shape[-1]
    words = [w for w in range(vocabulary) if w != END and w not in banned]
    captions = []
    for length in range(options.max_length):
        for body in itertools.product(words, repeat=length):
            if not allowed(body):
                continue
            caption = (*body, END)
            path = zip((START, *body), caption)
            values = [log_probs[t, last, next_] for t, (last, next_) in enumerate(path)]
            total = float(sum(values))
            captions.append((total / divisor(options, len(caption)), body))
    return sorted(captions, reverse=True)


def random_table(images: int, steps: int, vocabulary: int, *, sharp: float = 2.0) -> torch.Tensor:
    return sharp * torch.randn(images, steps, vocabulary, vocabulary, dtype=torch.float64)
