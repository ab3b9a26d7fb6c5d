"""Decoding against exhaustive enumeration on small tables of probabilities."""

import itertools

import pytest
import torch

from captioner.decoding import DecodingOptions, Hypothesis, Phrases, decode
from captioner.decoding.beam import beam_search
from captioner.decoding.constraints import Constraints, Required
from captioner.decoding.search import Reader

PAD, START, END = 0, 1, 2


def table_step(table: torch.Tensor):
    """A model that is a table: logits of the next token by (image, step, last token).

    table: [B, T, V, V]. The state carries the image and the step.
    """

    def step(tokens: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
        logits = table[state["image"], state["step"], tokens]
        return logits, {"image": state["image"], "step": state["step"] + 1}

    return step


def start_state(images: int) -> dict:
    return {"image": torch.arange(images), "step": torch.zeros(images, dtype=torch.long)}


def everything(table: torch.Tensor, image: int, options: DecodingOptions, banned=()) -> list:
    """Every caption that ends within max_length, with its score, best first."""
    log_probs = torch.log_softmax(table[image], dim=-1)
    vocabulary = table.shape[-1]
    words = [w for w in range(vocabulary) if w != END and w not in banned]
    found = []
    for length in range(options.max_length):
        for body in itertools.product(words, repeat=length):
            caption = (*body, END)
            path = zip((START, *body), caption)
            values = [log_probs[t, last, next_] for t, (last, next_) in enumerate(path)]
            total = float(sum(values))
            found.append((total / len(caption) ** options.length_penalty, body))
    return sorted(found, reverse=True)


def random_table(images: int, steps: int, vocabulary: int, *, sharp: float = 2.0) -> torch.Tensor:
    return sharp * torch.randn(images, steps, vocabulary, vocabulary, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_full_beam_is_an_exhaustive_search(penalty: float) -> None:
    table = random_table(3, 4, 5)
    options = DecodingOptions(beam_size=5**4, length_penalty=penalty, max_length=4)
    found = decode(table_step(table), start_state(3), start=START, end=END, options=options)
    for image in range(3):
        expected = everything(table, image, options)
        best = found[image][0]
        assert best.finished
        assert best.tokens == expected[0][1]
        assert best.score == pytest.approx(expected[0][0], abs=1e-5)


def test_a_full_beam_ranks_its_hypotheses_as_enumeration_does() -> None:
    table = random_table(1, 3, 4)
    options = DecodingOptions(beam_size=64, length_penalty=1.0, max_length=3)
    (found,) = decode(table_step(table), start_state(1), start=START, end=END, options=options)
    expected = everything(table, 0, options)[: len(found)]
    assert [one.tokens for one in found[:3]] == [tokens for _, tokens in expected[:3]]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_of_one_is_greedy(penalty: float) -> None:
    table = random_table(40, 6, 7)
    plain = decode(
        table_step(table),
        start_state(40),
        start=START,
        end=END,
        options=DecodingOptions(max_length=6),
    )
    options = DecodingOptions(length_penalty=penalty, max_length=6)
    read = Reader(table_step(table), START, Constraints(options, Phrases(), END))
    beam = beam_search(read, start_state(40), end=END, options=options, required=Required())
    assert [one[0].tokens for one in plain] == [one[0].tokens for one in beam]
    assert any(one[0].finished for one in plain)
    assert any(not one[0].finished for one in plain)


def test_greedy_takes_the_most_probable_word() -> None:
    table = random_table(9, 5, 6)
    found = decode(
        table_step(table),
        start_state(9),
        start=START,
        end=END,
        options=DecodingOptions(max_length=5),
    )
    for image in range(9):
        last, words, values = START, [], []
        for t in range(5):
            log_probs = torch.log_softmax(table[image, t, last], dim=-1)
            last = int(log_probs.argmax())
            values.append(float(log_probs.max()))
            if last == END:
                break
            words.append(last)
        one = found[image][0]
        assert one.tokens == tuple(words)
        assert one.log_probs == pytest.approx(values, abs=1e-5)
        assert one.finished == (last == END)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_an_image_is_decoded_alike_alone_and_in_company(beam_size: int) -> None:
    table = random_table(8, 6, 9)
    options = DecodingOptions(beam_size=beam_size, length_penalty=0.5, max_length=6)

    def run(which: list[int]) -> list[list[Hypothesis]]:
        state = {"image": torch.tensor(which), "step": torch.zeros(len(which), dtype=torch.long)}
        return decode(table_step(table), state, start=START, end=END, options=options)

    together = run(list(range(8)))
    for image in range(8):
        assert run([image])[0][0].tokens == together[image][0].tokens


def test_scores_are_those_of_the_model() -> None:
    """Replaying a found caption through the table gives the log probabilities it reports."""
    table = random_table(5, 6, 8)
    options = DecodingOptions(beam_size=3, length_penalty=0.7, max_length=6)
    found = decode(table_step(table), start_state(5), start=START, end=END, options=options)
    for image, hypotheses in enumerate(found):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for one in hypotheses:
            tokens = [*one.tokens, END] if one.finished else list(one.tokens)
            last = [START, *tokens[:-1]]
            expected = [
                float(torch.log_softmax(table[image, t, last[t]], -1)[tokens[t]])
                for t in range(len(tokens))
            ]
            assert one.log_probs == pytest.approx(expected, abs=1e-5)
            assert one.score == pytest.approx(sum(expected) / len(tokens) ** 0.7, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_best_unfinished_is_returned_when_nothing_ends(beam_size: int) -> None:
    table = random_table(2, 4, 6)
    table[..., END] = -1e9
    options = DecodingOptions(beam_size=beam_size, max_length=4)
    found = decode(table_step(table), start_state(2), start=START, end=END, options=options)
    for hypotheses in found:
        assert len(hypotheses) == beam_size
        assert not hypotheses[0].finished
        assert len(hypotheses[0].tokens) == 4


@pytest.mark.parametrize("beam_size", [1, 2, 6**4])
def test_banned_tokens_are_never_emitted(beam_size: int) -> None:
    table = random_table(4, 4, 6)
    table[..., 3] += 5  # the favourite is banned
    options = DecodingOptions(beam_size=beam_size, max_length=4)
    found = decode(
        table_step(table), start_state(4), start=START, end=END, options=options, banned=(0, 1, 3)
    )
    for image, hypotheses in enumerate(found):
        assert all(set(one.tokens) <= {4, 5} for one in hypotheses)
        if beam_size == 6**4:
            assert hypotheses[0].tokens == everything(table, image, options, (0, 1, 3))[0][1]


def test_an_empty_caption_is_possible() -> None:
    table = torch.zeros(1, 3, 5, 5)
    table[:, 0, START, END] = 9
    for beam_size in (1, 3):
        options = DecodingOptions(beam_size=beam_size, max_length=3)
        (found,) = decode(table_step(table), start_state(1), start=START, end=END, options=options)
        assert found[0].tokens == ()
        assert found[0].finished


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", 0),
        ("beam_size", 2.5),
        ("beam_size", True),
        ("max_length", 0),
        ("length_penalty", -1.0),
        ("length_penalty", float("nan")),
        ("length_penalty", "long"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"decoding.{name}="):
        DecodingOptions(**{name: value})


def test_labels() -> None:
    assert DecodingOptions().label == "greedy"
    assert DecodingOptions(beam_size=3).label == "beam3"
    assert DecodingOptions(beam_size=5, length_penalty=0.7).label == "beam5-lp0.7"
