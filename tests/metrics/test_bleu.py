"""BLEU compared with closed forms and coco-caption, and its signature."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest

import captioner
from captioner.metrics.bleu import bleu
from captioner.metrics.scores import Scores, score
from captioner.metrics.signature import Signature, reference_hash

_NOUNS = "man woman dog cat boy girl ball bike tree street".split()
_VERBS = "runs jumps sits plays looks stands".split()
_PLACES = ["on the grass", "in a red car", "near the water", "with two friends", "by a tall house"]


def sentence(draw: random.Random) -> str:
    parts = ["a", draw.choice(_NOUNS), draw.choice(_VERBS), draw.choice(_PLACES)]
    if draw.random() < 0.5:
        parts += ["and", "the", draw.choice(_NOUNS), draw.choice(_VERBS)]
    return " ".join(parts)


def corpus(size: int = 60, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Captions with 3 to 5 references, similar enough to have common n-grams of all orders."""
    draw = random.Random(seed)
    references = [[sentence(draw) for _ in range(draw.randint(3, 5))] for _ in range(size)]
    return [sentence(draw) for _ in range(size)], references


# Closed forms ---------------------------------------------------------------------------------


def test_repeated_words_are_clipped_to_one_reference() -> None:
    """The example of the paper: seven times "the", of which a reference has two."""
    references = [["The cat is on the mat.", "There is a cat on the mat."]]
    scores = score(["the the the the the the the"], references).values
    assert scores["BLEU-1"] == pytest.approx(100 * 2 / 7)
    assert [scores[f"BLEU-{n}"] for n in (2, 3, 4)] == [0.0, 0.0, 0.0]


def test_short_candidates_get_a_brevity_penalty() -> None:
    scores = score(["a b c d"], [["a b c d e f g"]]).values
    for n in (1, 2, 3, 4):
        assert scores[f"BLEU-{n}"] == pytest.approx(100 * math.exp(1 - 7 / 4))


@pytest.mark.parametrize(
    ("lengths", "closest"),
    [((4, 9), 4), ((6, 8), 6), ((5, 7), 5), ((5, 10), 5), ((8, 11), 8), ((7, 9), 7)],
)
def test_the_reference_closest_in_length_is_used(lengths: tuple[int, int], closest: int) -> None:
    """If two are equally close, the shorter one is used: 5, not 7, for a candidate of 6."""
    words = [f"w{index}" for index in range(12)]
    references = [[words[:length] for length in lengths]]
    expected = min(1, math.exp(1 - closest / 6)) * min(6, max(lengths)) / 6
    assert bleu([words[:6]], references)["BLEU-1"] == pytest.approx(100 * expected)


def test_counts_are_summed_over_the_corpus() -> None:
    """Two of three and one of five words: 3/8, while the mean of the sentences would be 0.43."""
    scores = score(["a b x", "c x x y z"], [["a b q"], ["c q r s t"]]).values
    assert scores["BLEU-1"] == pytest.approx(100 * 3 / 8)
    # One of two and none of four pairs.
    assert scores["BLEU-2"] == pytest.approx(100 * math.sqrt(3 / 8 * 1 / 6))
    assert scores["BLEU-3"] == 0.0


def test_a_perfect_match_gives_100() -> None:
    candidates, references = corpus()
    same = [[*texts, candidate] for candidate, texts in zip(candidates, references)]
    assert score(candidates, same).values == pytest.approx(
        {"BLEU-1": 100, "BLEU-2": 100, "BLEU-3": 100, "BLEU-4": 100}
    )


@pytest.mark.parametrize("candidate", ["q r s t u", "", "...", "q"])
def test_no_common_words_give_exactly_0(candidate: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score([candidate], [["a b c d e", "f g"]])
    assert list(scores.values.values()) == [0.0, 0.0, 0.0, 0.0]


def test_orders_without_matches_give_exactly_0_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(["a b c x"], [["a b c y"]]).values
    assert scores["BLEU-3"] == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert scores["BLEU-4"] == 0.0


# Other implementations ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_coco_caption_gives_the_same(seed: int) -> None:
    coco = pytest.importorskip("pycocoevalcap.bleu.bleu")
    candidates, references = corpus(seed=seed)
    expected, _ = coco.Bleu(4).compute_score(
        dict(enumerate(references)),
        {index: [candidate] for index, candidate in enumerate(candidates)},
        verbose=0,
    )
    values = list(score(candidates, references).values.values())
    assert min(values) > 1
    assert values == pytest.approx([100 * value for value in expected], abs=1e-6)


def test_one_call_of_nltk_equals_four_calls() -> None:
    from nltk.translate.bleu_score import corpus_bleu

    candidates, references = corpus(seed=4)
    words = [text.split() for text in candidates]
    reference_words = [[text.split() for text in texts] for texts in references]
    expected = [
        100 * corpus_bleu(reference_words, words, weights=[1 / n] * n) for n in (1, 2, 3, 4)
    ]
    assert list(bleu(words, reference_words).values()) == pytest.approx(expected, rel=1e-12)


# Influences on the score ----------------------------------------------------------------------


def test_order_of_images_and_references_does_not_matter() -> None:
    candidates, references = corpus(seed=5)
    before = score(candidates, references)
    draw = random.Random(6)
    order = draw.sample(range(len(candidates)), len(candidates))
    mixed = [draw.sample(references[index], len(references[index])) for index in order]
    after = score([candidates[index] for index in order], mixed)
    assert after.values == pytest.approx(before.values)
    assert after.signature == before.signature


def test_case_and_punctuation_do_not_matter() -> None:
    candidates, references = corpus(seed=7)
    loud = [f"{text.upper()}!" for text in candidates]
    assert score(loud, references).values == score(candidates, references).values


def test_candidates_of_other_images_score_lower() -> None:
    _, references = corpus(seed=8)
    mine = [texts[0] for texts in references]
    shifted = [*mine[1:], mine[0]]
    assert score(shifted, references).values["BLEU-4"] < score(mine, references).values["BLEU-4"]


def test_chinese_is_scored_by_characters() -> None:
    candidates, references = ["一只黑狗在跑。"], [["一只白狗在跑", "狗"]]
    by_characters = score(candidates, references, tokenize="character").values
    assert by_characters["BLEU-1"] == pytest.approx(100 * 5 / 6)
    assert by_characters["BLEU-2"] == pytest.approx(100 * math.sqrt(5 / 6 * 3 / 5))
    assert score(candidates, references).values["BLEU-1"] == 0.0


# Signature ------------------------------------------------------------------------------------


def test_the_signature_says_how_scores_were_computed() -> None:
    candidates, references = corpus(size=7)
    references = [texts[:3] for texts in references]
    scores = score(candidates, references, context={"decoding": "beam3", "data": "shapes"})
    assert str(scores.signature) == (
        "tok:ptb|case:lower|refs:3|n:7|decoding:beam3|data:shapes"
        f"|references:{reference_hash([''] * 7, references)}|captioner:{captioner.__version__}"
    )
    text = f"BLEU|nltk:{version('nltk')}|{scores.signature}"
    texts = {f"BLEU-{n}": text for n in (1, 2, 3, 4)}
    assert {name: str(signature) for name, signature in scores.signatures.items()} == texts
    content = scores.as_dict()
    fields = content.pop("fields")
    assert content == {
        "format": 1,
        "version": captioner.__version__,
        "scores": scores.values,
        "signatures": texts,
        "signature": str(scores.signature),
        "missing": {},
    }
    assert fields["metrics"]["BLEU-4"] == {"metric": "BLEU", "parts": {"nltk": version("nltk")}}
    assert fields["common"]["decoding"] == "beam3" and fields["common"]["count"] == 7


def test_signatures_differ_by_number_of_references_and_tokenization() -> None:
    scores = score(["一", "二"], [["一"], ["一", "二", "三"]], tokenize="character")
    assert str(scores.signature).startswith("tok:character|")
    assert "|refs:1-3|n:2|" in str(scores.signature)


def test_a_value_cannot_forge_an_entry() -> None:
    scores = score(["a"], [["a"]], context={"data": "x|n:1000"})
    assert str(scores.signature).split("|")[4] == "data:x_n:1000"


def test_scores_cannot_be_changed() -> None:
    scores = Scores({"BLEU-1": 1.0}, {"BLEU-1": Signature(metric="BLEU", count=1)}, Signature())
    with pytest.raises(AttributeError):
        scores.signature = Signature(count=1000)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        scores.signatures["BLEU-1"].count = 1000  # type: ignore[misc]


# Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "references", "options", "says"),
    [
        (["a", "b"], [["a"]], {}, "2 candidates and 1 lists of references"),
        ([], [], {}, "there are no candidates"),
        (["a", "b"], [["a"], []], {}, "candidate 1 has no reference"),
        (["a"], ["a dog"], {}, r"references\[0\] is one text"),
        ("a", [["a"]], {}, "candidates is one text"),
        (["a"], "a", {}, "references is one text"),
        ([None], [["a"]], {}, "image 0 has None as a caption"),
        (["a", "b"], [["a"], ["b", 5]], {}, "image 1 has 5 as a caption"),
        ([["a"]], [["a"]], {}, r"image 0 has \['a'\] as a caption"),
        (
            ["a"],
            [["a"]],
            {"tokenize": "ptbb"},
            r"choose ptb, character, ptb-jar \(did you mean ptb\?\)",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(candidates, references, options, says) -> None:
    with pytest.raises(ValueError, match=says) as error:
        score(candidates, references, **options)
    assert "\n" not in str(error.value)


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, captioner.metrics; print({'torch', 'nltk', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
