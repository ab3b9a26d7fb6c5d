"""Decoding compared with exhaustive enumeration on small tables of probabilities."""

import pytest
import torch
from support.tables import END, START, everything, random_table, start_state, table_step

from captioner.decoding.beam import _top, beam_search
from captioner.decoding.constraints import Constraints, Phrases, Required
from captioner.decoding.decode import decode
from captioner.decoding.ensemble import together
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis, Reader


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_full_beam_is_an_exhaustive_search(penalty: float) -> None:
    table = random_table(3, 4, 5)
    options = DecodingOptions(beam_size=5**4, length_penalty=penalty, max_length=4)
    hypotheses = decode(table_step(table), start_state(3), start=START, end=END, options=options)
    for image in range(3):
        expected = everything(table, image, options)
        best = hypotheses[image][0]
        assert best.finished
        assert best.tokens == expected[0][1]
        assert best.score == pytest.approx(expected[0][0], abs=1e-5)


def test_a_full_beam_ranks_its_hypotheses_as_enumeration_does() -> None:
    table = random_table(1, 3, 4)
    options = DecodingOptions(beam_size=64, length_penalty=1.0, max_length=3)
    (hypotheses,) = decode(table_step(table), start_state(1), start=START, end=END, options=options)
    expected = everything(table, 0, options)[: len(hypotheses)]
    assert [hypothesis.tokens for hypothesis in hypotheses[:3]] == [
        tokens for _, tokens in expected[:3]
    ]


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
    assert [hypotheses[0].tokens for hypotheses in plain] == [
        hypotheses[0].tokens for hypotheses in beam
    ]
    assert any(hypotheses[0].finished for hypotheses in plain)
    assert any(not hypotheses[0].finished for hypotheses in plain)


def test_greedy_takes_the_most_probable_word() -> None:
    table = random_table(9, 5, 6)
    hypotheses = decode(
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
        best = hypotheses[image][0]
        assert best.tokens == tuple(words)
        assert best.log_probs == pytest.approx(values, abs=1e-5)
        assert best.finished == (last == END)


@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_decoding_an_image_does_not_depend_on_its_batch(beam_size: int) -> None:
    table = random_table(8, 6, 9)
    options = DecodingOptions(beam_size=beam_size, length_penalty=0.5, max_length=6)

    def run(images: list[int]) -> list[list[Hypothesis]]:
        state = start_state(images)
        return decode(table_step(table), state, start=START, end=END, options=options)

    together = run(list(range(8)))
    for image in range(8):
        assert run([image])[0][0].tokens == together[image][0].tokens


def test_scores_are_those_of_the_model() -> None:
    """Reading a caption with the table gives the log probabilities that it has."""
    table = random_table(5, 6, 8)
    options = DecodingOptions(beam_size=3, length_penalty=0.7, max_length=6)
    results = decode(table_step(table), start_state(5), start=START, end=END, options=options)
    for image, hypotheses in enumerate(results):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for hypothesis in hypotheses:
            tokens = [*hypothesis.tokens, END] if hypothesis.finished else list(hypothesis.tokens)
            last = [START, *tokens[:-1]]
            expected = [
                float(torch.log_softmax(table[image, t, last[t]], -1)[tokens[t]])
                for t in range(len(tokens))
            ]
            assert hypothesis.log_probs == pytest.approx(expected, abs=1e-5)
            assert hypothesis.score == pytest.approx(sum(expected) / len(tokens) ** 0.7, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_best_unfinished_is_returned_when_nothing_ends(beam_size: int) -> None:
    table = random_table(2, 4, 6)
    table[..., END] = -1e9
    options = DecodingOptions(beam_size=beam_size, max_length=4)
    results = decode(table_step(table), start_state(2), start=START, end=END, options=options)
    for hypotheses in results:
        assert len(hypotheses) == beam_size
        assert not hypotheses[0].finished
        assert len(hypotheses[0].tokens) == 4


@pytest.mark.parametrize("beam_size", [1, 2, 5**4])
def test_banned_tokens_are_never_emitted(beam_size: int) -> None:
    table = random_table(4, 4, 6)
    table[..., 3] += 5  # the most probable token is banned
    options = DecodingOptions(beam_size=beam_size, max_length=4)
    results = decode(
        table_step(table), start_state(4), start=START, end=END, options=options, banned=(0, 1, 3)
    )
    for image, hypotheses in enumerate(results):
        assert all(set(hypothesis.tokens) <= {4, 5} for hypothesis in hypotheses)
        if beam_size == 5**4:
            assert hypotheses[0].tokens == everything(table, image, options, (0, 1, 3))[0][1]


def test_an_empty_caption_is_possible() -> None:
    table = torch.zeros(1, 3, 5, 5)
    table[:, 0, START, END] = 9
    for beam_size in (1, 3):
        options = DecodingOptions(beam_size=beam_size, max_length=3)
        (results,) = decode(
            table_step(table), start_state(1), start=START, end=END, options=options
        )
        assert results[0].tokens == ()
        assert results[0].finished


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


def test_gnmt_length_penalty_against_enumeration() -> None:
    table = random_table(3, 4, 5)
    options = DecodingOptions(
        beam_size=5**4, length_penalty=0.9, length_rule="gnmt", max_length=4, early_stopping=False
    )
    results = decode(table_step(table), start_state(3), start=START, end=END, options=options)
    for image in range(3):
        score, tokens = everything(table, image, options)[0]
        assert results[image][0].tokens == tokens
        assert results[image][0].score == pytest.approx(score, abs=1e-5)
    plain = DecodingOptions(beam_size=5**4, length_penalty=0.9, max_length=4)
    without_penalty = [everything(table, image, plain)[0][0] for image in range(3)]
    assert without_penalty != pytest.approx(
        [hypotheses[0].score for hypotheses in results], abs=1e-3
    )


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_n_best_of_a_full_beam_equal_enumeration(penalty: float) -> None:
    table = random_table(3, 4, 5)
    options = DecodingOptions(
        beam_size=4**4, captions=20, length_penalty=penalty, max_length=4, early_stopping=False
    )
    results = decode(table_step(table), start_state(3), start=START, end=END, options=options)
    for image in range(3):
        expected = everything(table, image, options)[:20]
        assert [hypothesis.tokens for hypothesis in results[image][:20]] == [
            tokens for _, tokens in expected
        ]
        scores = [hypothesis.score for hypothesis in results[image][:20]]
        assert scores == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_no_beam_is_better_than_the_full_beam() -> None:
    """Only the full beam is certain to be best; a wider beam may be worse, as it is here."""
    table = random_table(300, 5, 6, sharp=1.5)
    best = {
        width: [
            ranked[0].score if ranked[0].finished else -torch.inf
            for ranked in decode(
                table_step(table),
                start_state(300),
                start=START,
                end=END,
                options=DecodingOptions(beam_size=width, max_length=5),
            )
        ]
        for width in (1, 2, 3, 5**4)
    }
    for width in (1, 2, 3):
        assert all(score <= full + 1e-5 for score, full in zip(best[width], best[5**4]))
    assert any(wide > narrow + 1e-4 for wide, narrow in zip(best[2], best[1]))
    pairs = [*zip(best[2], best[1]), *zip(best[3], best[2])]
    assert any(wide < narrow - 1e-4 for wide, narrow in pairs if wide > -torch.inf)


def test_search_without_early_stopping_is_not_worse() -> None:
    table = random_table(60, 6, 7, sharp=1.5)
    hasty, patient = (
        decode(
            table_step(table),
            start_state(60),
            start=START,
            end=END,
            options=DecodingOptions(
                beam_size=2, length_penalty=1.0, max_length=6, early_stopping=early
            ),
        )
        for early in (True, False)
    )
    assert all(a[0].score <= b[0].score + 1e-6 for a, b in zip(hasty, patient))
    assert any(a[0].score < b[0].score - 1e-4 for a, b in zip(hasty, patient))


def plain_diverse_search(
    log_probs: torch.Tensor, *, width: int, groups: int, diversity: float, steps: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Diverse beam search of one image with lists, as in the paper: the best of each group.

    A group stops at `width` ended captions, or when its best one cannot be beaten any more.
    """
    beams = [[((), 0.0)] for _ in range(groups)]
    ended: list[list] = [[] for _ in range(groups)]
    for t in range(steps):
        counts: dict[int, int] = {}
        for group in range(groups):
            if not beams[group]:
                continue
            every = [
                (total + float(log_probs[t, (START, *body)[-1], word]), body, word)
                for body, total in beams[group]
                for word in range(log_probs.shape[-1])
            ]
            every.sort(
                key=lambda candidate: -(candidate[0] - diversity * counts.get(candidate[2], 0))
            )
            over = [candidate for candidate in every[:width] if candidate[2] == END]
            live = [candidate for candidate in every if candidate[2] != END][:width]
            for _, _, word in (*live, *over):
                counts[word] = counts.get(word, 0) + 1
            ended[group] += [(total, body) for total, body, _ in over]
            beams[group] = [((*body, word), total) for total, body, word in live]
            best_live = max(total for total, _, _ in live)
            beaten = bool(ended[group]) and max(ended[group])[0] >= best_live
            if len(ended[group]) >= width or beaten:
                beams[group] = []
    finished = [max(candidates) for candidates in ended if candidates]
    left = [max((total, body) for body, total in b) for b, e in zip(beams, ended) if b and not e]
    return sorted([*finished, *left], reverse=True)


@pytest.mark.parametrize(("groups", "width"), [(3, 1), (2, 2), (3, 2), (4, 1)])
def test_diverse_beams_equal_a_simple_implementation_of_the_paper(groups: int, width: int) -> None:
    table = random_table(25, 6, 7, sharp=1.0)
    options = DecodingOptions(
        beam_size=groups * width, groups=groups, diversity=0.7, max_length=6, captions=groups
    )
    results = decode(table_step(table), start_state(25), start=START, end=END, options=options)
    for image in range(25):
        log_probs = torch.log_softmax(table[image], dim=-1)
        expected = plain_diverse_search(
            log_probs, width=width, groups=groups, diversity=0.7, steps=6
        )
        best = results[image][:groups]
        assert [hypothesis.tokens for hypothesis in best] == [tokens for _, tokens in expected]
        assert [hypothesis.score for hypothesis in best] == pytest.approx(
            [s for s, _ in expected], abs=1e-5
        )


def test_a_larger_penalty_makes_groups_more_different() -> None:
    table = random_table(40, 6, 12, sharp=2.0)

    def distinct(diversity: float) -> int:
        options = DecodingOptions(
            beam_size=4, groups=4, diversity=diversity, max_length=6, captions=4
        )
        results = decode(table_step(table), start_state(40), start=START, end=END, options=options)
        return sum(
            len({hypothesis.tokens[:1] for hypothesis in hypotheses[:4]}) for hypotheses in results
        )

    assert distinct(0.0) == 40  # without a penalty all groups are the same
    assert distinct(0.5) < distinct(5.0) <= 160


def test_one_group_equals_beam_search() -> None:
    table = random_table(20, 6, 7)
    plain, grouped = (
        decode(table_step(table), start_state(20), start=START, end=END, options=options)
        for options in (
            DecodingOptions(beam_size=2, max_length=6),
            DecodingOptions(beam_size=6, groups=3, diversity=0.0, max_length=6),
        )
    )
    assert [hypotheses[0] for hypotheses in plain] == [hypotheses[0] for hypotheses in grouped]


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 4, "groups": 2, "captions": 4},
        {"beam_size": 3, "captions": 3, "early_stopping": False, "length_penalty": 1.0},
        {"beam_size": 2, "no_repeat_ngram": 2, "min_length": 3},
        {"beam_size": 2, "length_rule": "gnmt", "length_penalty": 0.6, "no_repeat_word": True},
        {"beam_size": 4, "consensus": 2.0, "captions": 2},
    ],
)
def test_captions_do_not_depend_on_the_batch(options: dict) -> None:
    table = random_table(9, 6, 8)
    decoding = DecodingOptions(max_length=6, **options)

    def run(images: list[int]) -> list[list[Hypothesis]]:
        state = start_state(images)
        return decode(
            table_step(table),
            state,
            start=START,
            end=END,
            options=decoding,
            phrases=Phrases(required=((5,),)),
        )

    together = run(list(range(9)))
    assert [run([image])[0] for image in range(9)] == together
    assert run([]) == []


@pytest.mark.parametrize("average", ["probability", "log_probability"])
def test_an_ensemble_averages_the_predictions_of_its_models(average: str) -> None:
    """A search with two models equals a search in the table of their average."""
    tables = [random_table(4, 4, 6), random_table(4, 4, 6)]
    log_probs = torch.stack([torch.log_softmax(table, dim=-1) for table in tables])
    mean = log_probs.exp().mean(0).log() if average == "probability" else log_probs.mean(0)
    options = DecodingOptions(beam_size=3, max_length=4, ensemble=average)
    states = [start_state(4), {"row": torch.arange(4), "at": torch.zeros(4, dtype=torch.long)}]

    def other(tokens: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
        named = {"image.number": state["row"], "step": state["at"]}  # nothing belongs to images
        logits, after = table_step(tables[1])(tokens, named)
        return logits, {"row": after["image.number"], "at": after["step"]}

    step, state = together([table_step(tables[0]), other], states, average=average)
    results = decode(step, state, start=START, end=END, options=options)
    expected = decode(table_step(mean), start_state(4), start=START, end=END, options=options)
    for hypotheses, peer in zip(results, expected):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in peer]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in peer], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 1.0, "beam_size": 3}, "samples token by token"),
        ({"temperature": 1.0, "required_words": ["a"]}, "no required_words"),
        ({"top_p": 0.9}, "set temperature=1 too"),
        ({"top_k": 5}, "set temperature=1 too"),
        ({"captions": 3}, "need beam_size=3 or more"),
        ({"beam_size": 4, "groups": 3}, "does not divide beam_size=4"),
        ({"min_length": 30}, "do not fit into max_length=30"),
        ({"length_rule": "gmnt"}, "did you mean gnmt"),
        ({"banned_words": "dog"}, "a list of words or phrases"),
        ({"required_words": [""]}, "a list of words or phrases"),
        ({"prefix": 3}, "prefix=3 is not accepted; choose a text"),
        ({"no_repeat_word": "yes"}, "choose true or false"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DecodingOptions(**options)


def test_temperature_turns_beam_search_off_and_beam_size_turns_sampling_off() -> None:
    beam = DecodingOptions(beam_size=3)
    drawn = beam.changed(temperature=1.0, top_p=0.9)
    assert (drawn.beam_size, drawn.samples) == (1, True)
    assert drawn.changed(beam_size=3) == beam
    with pytest.raises(ValueError, match="did you mean temperature"):
        beam.changed(temprature=1.0)


def test_labels() -> None:
    assert DecodingOptions().label == "greedy"
    assert DecodingOptions(beam_size=3).label == "beam3"
    assert DecodingOptions(beam_size=3, precision="bf16").label == "beam3-bf16"
    assert DecodingOptions(beam_size=5, length_penalty=0.7).label == "beam5-lp0.7"
    sampled = DecodingOptions(temperature=0.8, top_p=0.9, captions=5, no_repeat_ngram=3)
    assert sampled.label == "sample-t0.8-p0.9-seed0-n5-ngram3"
    constrained = DecodingOptions(beam_size=2, required_words=["red ball", "dog"], prefix="a / b")
    assert constrained.label == "beam2-with.dog+red_ball-prefix.a_b"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 501])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("wanted", [1, 3, 10])
def test_top_in_two_rounds_equals_topk(size: int, rows: int, wanted: int) -> None:
    values, offset = torch.randn(4, rows, size), torch.randn(4, rows)
    values[torch.rand_like(values) < 0.2] = -torch.inf
    best, places = _top(values, offset, wanted)
    totals = (values + offset[..., None]).flatten(1)
    expected, _ = totals.topk(min(wanted, rows * size), dim=1)
    assert torch.equal(best, expected)
    finite = best > -torch.inf
    assert torch.equal(totals.gather(1, places)[finite], best[finite])
