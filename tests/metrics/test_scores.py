"""Scores against coco-caption's own code, closed forms, and each other."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.data.shapes import describe, sample_scene
from captioner.metrics import clip, spice
from captioner.metrics.bleu import bleu, bleu_rows, from_bleu_rows
from captioner.metrics.cider import Cider
from captioner.metrics.corpus import Corpus, Unavailable
from captioner.metrics.diversity import set_diversity
from captioner.metrics.meteor import from_meteor_rows, meteor
from captioner.metrics.ngrams import References
from captioner.metrics.rouge import rouge_rows
from captioner.metrics.scores import score
from captioner.metrics.statistics import Statistics
from captioner.metrics.table import METRICS, named
from captioner.metrics.tokenize import ptb_jar_words, ptb_words

pytest.importorskip("pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")

Captions = tuple[list[list[str]], list[list[list[str]]]]
"""The words of candidates, and of the references of each."""

WORDS = "a dog sits 犬 é the the 's".split()


def drawn(images: int, seed: int) -> Captions:
    """Captions from the grammar of the built-in dataset; candidates may describe other scenes."""
    chance = random.Random(seed)
    references, candidates = [], []
    for _ in range(images):
        texts = describe(sample_scene(chance, "train"), chance)
        references.append([text.split() for text in texts[: chance.randint(1, len(texts))]])
        unrelated = describe(sample_scene(chance, "dev"), chance)[0].split()
        candidates.append(
            chance.choice([texts[-1].split(), unrelated, unrelated[: chance.randint(0, 6)]])
        )
    return candidates, references


def flickr() -> Captions:
    """One caption by a person as candidate, the others as references."""
    folder = os.environ.get("CAPTIONER_FLICKR8K")
    if not folder:
        pytest.skip("CAPTIONER_FLICKR8K does not name the folder of Flickr8k")
    captions: dict[str, list[list[str]]] = {}
    text = (Path(folder).expanduser() / "Flickr8k.token.txt").read_text(encoding="utf-8")
    for line in text.splitlines()[:10000]:
        name, _, caption = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(ptb_words(caption))
    return [texts[0] for texts in captions.values()], [texts[1:] for texts in captions.values()]


def for_coco(captions: Captions) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    candidates, references = captions
    return (
        {i: [" ".join(words) for words in texts] for i, texts in enumerate(references)},
        {i: [" ".join(words)] for i, words in enumerate(candidates)},
    )


def agree_with_coco(captions: Captions) -> None:
    """BLEU's counts, ROUGE-L and CIDEr-D of each image and of all."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider as CocoCider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = captions
    people, generated = for_coco(captions)
    numbered = References(references)

    counter = BleuScorer(n=4)
    for image in people:
        counter += (generated[image][0], people[image])
    total, per_image = counter.compute_score(option="closest", verbose=0)
    rows = bleu_rows(numbered, candidates, coco=True)
    expected = [
        [*counts["correct"], *counts["guess"], counts["testlen"]] for counts in counter.ctest
    ]
    assert rows[:, :9].tolist() == expected
    assert rows[:, 9].sum() == counter._reflen
    ours = [*from_bleu_rows(rows).values(), *from_bleu_rows(rows.mean(axis=0)).values()]
    for n, (mine, theirs) in enumerate(zip(ours, [*per_image, *total]), start=0):
        # coco-caption gives slightly more than 0 if no n-gram matches, or the candidate has none.
        counted = rows if n < 4 else rows.sum(axis=0)
        certain = (counted[..., : n % 4 + 1] > 0).all(axis=-1)
        assert mine[certain] == pytest.approx(100 * numpy.array(theirs)[certain], abs=1e-5)
        assert (numpy.asarray(mine)[~certain] == 0).all()
    totals = from_bleu_rows(bleu_rows(numbered, candidates).mean(axis=0))
    assert totals == pytest.approx(bleu(candidates, references), abs=1e-9)

    total, per_image = Rouge().compute_score(people, generated)
    actual = rouge_rows(numbered, candidates)[:, 0]
    assert actual / 100 == pytest.approx(per_image, abs=1e-9)
    assert actual.mean() / 100 == pytest.approx(total, abs=1e-9)

    total, per_image = CocoCider().compute_score(people, generated)
    actual = Cider(numbered).rows(candidates)[:, 0]
    assert actual / 100 == pytest.approx(per_image, abs=1e-9)
    assert actual.mean() / 100 == pytest.approx(total, abs=1e-9)


# Against coco-caption -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_drawn_captions_score_as_in_coco_caption(seed: int) -> None:
    agree_with_coco(drawn(70, seed))


def test_captions_by_people_score_as_in_coco_caption() -> None:
    agree_with_coco(flickr())


texts = st.lists(st.sampled_from(WORDS), max_size=7)
images = st.tuples(texts, st.lists(texts, min_size=1, max_size=3))


@pytest.mark.reliability("properties")
@settings(max_examples=150)
@given(
    st.lists(images, min_size=1, max_size=4).filter(
        lambda all: any(words for _, references in all for words in references)
    )
)
def test_edge_cases_score_as_in_coco_caption(
    corpus: list[tuple[list[str], list[list[str]]]],
) -> None:
    """Empty texts, one image, one reference, repeated references and words of other scripts."""
    agree_with_coco(
        ([candidate for candidate, _ in corpus], [references for _, references in corpus])
    )


def test_words_that_no_reference_has_count_in_length_and_norm() -> None:
    candidates = [["zebra", "zebra", "dog"], ["okapi", "a", "cat"]]
    agree_with_coco((candidates, [[["a", "dog"]], [["a", "cat", "sits"], ["cats"]]]))


# Other computations ---------------------------------------------------------------------------


def test_cider_without_clipping_is_the_mean_cosine() -> None:
    candidates, references = drawn(30, seed=3)
    weights = []
    for n in (1, 2, 3, 4):
        grams = [[_grams(words, n) for words in texts] for texts in references]
        held = Counter(gram for image in grams for gram in set().union(*image))
        weights.append((n, {gram: math.log(30 / count) for gram, count in held.items()}))
    expected = []
    for candidate, texts in zip(candidates, references):
        pairs = [_cosine(candidate, words, n, idf) for n, idf in weights for words in texts]
        expected.append(1000 * sum(pairs) / len(pairs))
    rows = Cider(References(references), clipped=False).rows(candidates)[:, 0]
    assert rows == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 100


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _cosine(
    first: list[str], second: list[str], n: int, idf: dict[tuple[str, ...], float]
) -> float:
    a, b = (
        {gram: count * idf.get(gram, math.log(30)) for gram, count in _grams(words, n).items()}
        for words in (first, second)
    )
    length = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(a[gram] * b.get(gram, 0) for gram in a) / length if length else 0.0


def test_a_caption_equal_to_every_reference_gets_the_maximum() -> None:
    _, references = drawn(20, seed=4)
    pairs = [(texts[0], [texts[0]] * 3) for texts in references if len(texts[0]) > 3]
    candidates, same = [candidate for candidate, _ in pairs], [texts for _, texts in pairs]
    numbered = References(same)
    assert rouge_rows(numbered, candidates) == pytest.approx(100)
    assert Cider(numbered).rows(candidates) == pytest.approx(1000)
    assert Cider(numbered, clipped=False).rows(candidates) == pytest.approx(1000)


def test_rouge_uses_the_best_precision_and_the_best_recall() -> None:
    """One reference has all words of the candidate, the other has few other words."""
    references = [["the dog is on the wet grass".split(), "a dog".split()]]
    precision, recall = 3 / 4, 1 / 2
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    rows = rouge_rows(References(references), ["the dog sits on".split()])
    assert rows[0, 0] == pytest.approx(100 * expected)


# Numbered references --------------------------------------------------------------------------


def test_references_serve_any_number_of_candidates() -> None:
    """As in self-critical training: samples of some images, several per image."""
    candidates, references = drawn(40, seed=5)
    numbered = References(references)
    scorer = Cider(numbered)
    rows = scorer.rows(candidates)
    places = numpy.array([7, 3, 3, 39, 0])
    repeated = [candidates[i] for i in places]
    assert scorer.rows(repeated, places) == pytest.approx(rows[places])
    assert rouge_rows(numbered, repeated, places) == pytest.approx(
        rouge_rows(numbered, candidates)[places]
    )
    assert (bleu_rows(numbered, repeated, places) == bleu_rows(numbered, candidates)[places]).all()
    moved = scorer.rows([candidates[7]], numpy.array([3]))
    assert moved[0, 0] == pytest.approx(scorer.rows([candidates[7]] * 40)[3, 0])


def test_document_frequencies_may_come_from_other_images() -> None:
    candidates, references = drawn(40, seed=6)
    few = References(references[10:13], documents=references)
    assert Cider(few).rows(candidates[10:13]) == pytest.approx(
        Cider(References(references)).rows(candidates)[10:13]
    )
    assert (
        bleu_rows(few, candidates[10:13]) == bleu_rows(References(references), candidates)[10:13]
    ).all()


@pytest.mark.parametrize("places", [[0, 40], [-1, 0], [0], [[0, 1]]])
def test_unknown_images_are_refused(places: list[int]) -> None:
    _, references = drawn(40, seed=7)
    with pytest.raises(ValueError, match="2 numbers from 0 to 39"):
        Cider(References(references)).rows([["a"], ["b"]], numpy.array(places))
    with pytest.raises(ValueError, match="2 candidates for 40 images"):
        References(references).match([["a"], ["b"]])


def test_an_image_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="an image has no reference"):
        References([[["a"]], []])


# METEOR, SPICE, CLIPScore ---------------------------------------------------------------------


@needs_java
def test_meteor_follows_from_its_counts() -> None:
    """The program's own score of all images, from the mean of the counts."""
    candidates, references = drawn(25, seed=8)
    candidates[4], candidates[5], candidates[6] = [], ["zebras", "sleeping"], references[6][0]
    references[5] = [["a", "zebra", "sleeps"], ["naïve"]]
    actual, rows = meteor(candidates, references)
    assert from_meteor_rows(rows.mean(axis=0))["METEOR"] == pytest.approx(actual, abs=1e-9)
    assert 5 < actual < 100
    per_image = from_meteor_rows(rows)["METEOR"]
    assert per_image[4] == 0
    assert per_image[6] == pytest.approx(100)


@needs_java
def test_meteor_is_that_of_coco_caption() -> None:
    """Runs only with real captions, because the programs take seconds to start."""
    candidates, references = (part[:200] for part in flickr())
    candidates[7] = references[7][2]
    from pycocoevalcap.meteor.meteor import Meteor

    total, per_image = Meteor().compute_score(*for_coco((candidates, references)))
    actual, rows = meteor(candidates, references)
    assert actual == pytest.approx(100 * total, abs=1e-9)
    expected = [100 * value for value in per_image]
    assert from_meteor_rows(rows)["METEOR"] == pytest.approx(expected, abs=1e-9)


def test_without_java_the_other_metrics_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    scores = score(["a dog"], [["a dog"]], metrics=["meteor", "bleu"])
    assert scores.values["BLEU-2"] == pytest.approx(100)
    assert scores.missing.keys() == {"meteor"}
    assert "needs java" in scores.missing["meteor"]
    with pytest.raises(ValueError, match="'ptb-jar' needs java.*'ptb' gives the same"):
        score(["a dog"], [["a dog"]], tokenize="ptb-jar")


def test_a_failure_of_java_is_reported_as_such(tmp_path, monkeypatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "could not run" in score(["a"], [["a"]], metrics=["meteor"]).missing["meteor"]
    with pytest.raises(ValueError, match="java could not run"):
        ptb_jar_words(["a dog"])


def test_metrics_for_english_skip_character_captions() -> None:
    scores = score(["狗"], [["狗在跑"]], tokenize="character", metrics=list(METRICS))
    assert {"meteor", "spice", "clip"} <= scores.missing.keys()
    assert "English" in scores.missing["spice"]
    assert scores.values["ROUGE-L"] > 0


@pytest.mark.parametrize("name", ["bleu", "BLEU", "Bleu-4", "bleu_2", "BLEU4", " BLEU-1"])
def test_a_metric_is_named_by_itself_or_by_its_scores_in_any_case(name: str) -> None:
    assert list(named([name])) == ["bleu"]
    assert set(score(["a dog"], [["a dog"]], metrics=[name]).values) == set(METRICS["bleu"].scores)


def test_every_score_name_selects_its_metric() -> None:
    for metric in ("bleu", "rouge-l", "cider-d", "cider", "diversity"):
        several = [["a dog", "a cat"]]
        scores = score(["a dog"], [["a dog"]], metrics=[metric], several=several, training=["x"])
        assert set(scores.values) == set(METRICS[metric].scores)
    assert named(["CIDEr-D", "cider", "BLEU-4", "bleu-1"]) == {
        "cider-d": ("CIDEr-D",),
        "cider": ("CIDEr",),
        "bleu": ("BLEU-4", "BLEU-1"),
    }
    with pytest.raises(ValueError, match="metrics='BLEU-5' is not known.*did you mean BLEU-"):
        named(["BLEU-5"])


@needs_java
def test_spice_is_reported_as_missing_and_not_downloaded() -> None:
    scores = score(["a dog"], [["a dog"]], metrics=["spice"])
    assert scores.values == {}
    assert "stanford-corenlp-3.6.0-models.jar" in scores.missing["spice"]


def test_spice_reads_the_output_of_the_program(tmp_path, monkeypatch) -> None:
    """A fake program: the score of an image is the fraction of its reference that was generated."""
    jar = tmp_path / "spice-1.0.jar"
    (tmp_path / "lib").mkdir()
    for path in (jar, *(tmp_path / "lib" / name for name in spice.PARSER)):
        path.touch()
    actor = tmp_path / "java"
    actor.write_text(
        "#!/usr/bin/env python3\nimport json, sys\n"
        "asked = json.load(open(sys.argv[sys.argv.index('-jar') + 2]))\n"
        "f = lambda one: len(one['test']) / len(one['refs'][0])\n"
        "found = [{'image_id': o['image_id'], 'scores': {'All': {'f': f(o)}}} for o in asked]\n"
        "json.dump(found[::-1], open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    actor.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(spice, "coco_file", lambda name: jar)
    scores = score(["a dog", "cat"], [["a dog runs"], ["cats"]], metrics=["spice"])
    assert scores.statistics.rows["spice"][:, 0] == pytest.approx([50, 75])
    assert scores.values == {"SPICE": pytest.approx(62.5)}


def _embed_images(paths: list[str]) -> numpy.ndarray:
    return numpy.array([[3.0, 4.0] if "dog" in path else [0.0, 2.0] for path in paths])


def _embed_texts(texts: list[str]) -> numpy.ndarray:
    assert all(text.startswith("A photo depicts ") for text in texts)
    return numpy.array([[5.0, 0.0] if "dog" in text else [-1.0, 1.0] for text in texts])


def test_clip_score_follows_the_paper(monkeypatch) -> None:
    monkeypatch.setattr(clip, "load", lambda: clip.Clip(_embed_images, _embed_texts))
    scores = score(
        ["A dog.", "a cat"],
        [["the dog", "a cat"], ["a dog"]],
        metrics=["clip"],
        pictures=["dog.jpg", "cat.jpg"],
    )
    first, second = 2.5 * 0.6, 2.5 * math.sqrt(0.5)
    rows = scores.statistics.rows
    assert rows["clip"][:, 0] == pytest.approx([100 * first, 100 * second])
    # The first caption equals a reference; the second has a negative cosine with all of them.
    assert rows["ref_clip"][:, 0] == pytest.approx([100 * 2 * first / (first + 1), 0])
    assert scores.values["CLIPScore"] == pytest.approx(50 * (first + second))


def test_clip_names_what_is_missing(tmp_path, monkeypatch) -> None:
    arguments = {"metrics": ["clip"], "pictures": ["a.jpg"]}
    monkeypatch.setattr(clip.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in score(["a"], [["a"]], **arguments).missing["clip"]
    monkeypatch.setattr(clip.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv(clip.WEIGHTS, str(tmp_path / "none"))
    assert "set CAPTIONER_CLIP" in score(["a"], [["a"]], **arguments).missing["clip"]
    assert "pictures" in score(["a"], [["a"]], metrics=["clip"]).missing["clip"]


def test_loading_clip_leaves_logging_as_the_caller_had_it(tmp_path, monkeypatch) -> None:
    levels: list[int] = []

    def create(architecture: str, pretrained: None) -> None:
        levels.append(logging.root.manager.disable)
        raise MemoryError

    weights = tmp_path / "weights.pt"
    weights.touch()
    open_clip = SimpleNamespace(create_model_and_transforms=create)
    monkeypatch.setattr(clip.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "open_clip", open_clip)
    monkeypatch.setenv(clip.WEIGHTS, str(weights))
    for before in (logging.NOTSET, logging.INFO, logging.ERROR):
        monkeypatch.setattr(logging.root.manager, "disable", before)
        with pytest.raises(MemoryError):
            clip.load()
        assert logging.root.manager.disable == before
    assert levels == [logging.WARNING, logging.WARNING, logging.ERROR]


# Diversity-------------------------------------------------------------------------------------


def test_diversity_of_captions() -> None:
    scores = score(
        ["A dog runs.", "a dog runs", "two cats"],
        [["a"], ["b"], ["c"]],
        metrics=["diversity"],
        training=["Two cats!", "a dog"],
    )
    assert scores.values == pytest.approx(
        {"length": 8 / 3, "vocabulary": 5, "distinct": 200 / 3, "novelty": 200 / 3}
    )
    assert str(scores.signatures["novelty"]).startswith("diversity|training:2-")
    assert "|tok:ptb|" in str(scores.signatures["novelty"])


def test_novelty_needs_the_training_captions() -> None:
    scores = score(["a dog"], [["a dog"]], metrics=["diversity"])
    assert "novelty" not in scores.values
    assert "training" in scores.missing["novelty"]


def test_diversity_of_several_captions_of_an_image() -> None:
    same, apart = [["a", "b", "c", "d"]] * 3, [["a", "b"], ["c", "d"], ["e"]]
    assert set_diversity([same]) == pytest.approx(
        {"distinct-1": 100 * 4 / 12, "distinct-2": 100 * 3 / 12, "mBLEU-4": 100}
    )
    assert set_diversity([apart]) == pytest.approx(
        {"distinct-1": 100, "distinct-2": 100 * 2 / 5, "mBLEU-4": 0}
    )
    several = [["a b c d"] * 3, ["a"]]  # the second image has only one
    scores = score(["a b c d", "a"], [["x"], ["y"]], metrics=["diversity"], several=several)
    assert scores.values["mBLEU-4"] == pytest.approx(100)
    assert scores.signatures["mBLEU-4"].parts["captions"] == "3"


def test_self_bleu_is_bleu_against_the_others() -> None:
    _, references = drawn(15, seed=9)
    sets = [texts for texts in references if len(texts) > 1]
    alone = [words for texts in sets for words in texts]
    reference_sets = [texts[:i] + texts[i + 1 :] for texts in sets for i in range(len(texts))]
    assert set_diversity(sets)["mBLEU-4"] == pytest.approx(bleu(alone, reference_sets)["BLEU-4"])


# Scores, statistics and signatures ------------------------------------------------------------


def test_stored_statistics_give_the_same_scores(tmp_path) -> None:
    candidates, references = drawn(20, seed=10)
    texts = [[" ".join(words) for words in group] for group in references]
    names = ["bleu", "rouge-l", "cider-d", "cider", "diversity"]
    captions = [" ".join(words) for words in candidates]
    ids = [f"图 {i}.png" for i in range(20)]
    scores = score(captions, texts, metrics=names, images=ids)
    again = Statistics.load(scores.statistics.save(tmp_path / "statistics.npz"))
    assert again.images == tuple(ids)
    restored = again.scores()
    assert restored.keys() == scores.values.keys() - {"vocabulary", "distinct"}
    for name, value in restored.items():
        assert value == pytest.approx(scores.values[name])
    content = json.loads(json.dumps(scores.as_dict()))
    assert content["scores"] == scores.values
    assert content["signatures"].keys() == scores.values.keys()


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metrics='cidre'.*did you mean cider"):
        score(["a"], [["a"]], metrics=["cidre"])


def test_unavailable_is_an_error_of_the_user() -> None:
    with pytest.raises(ValueError, match="pictures"):
        clip.measure(Corpus(["a"], [["a"]], [["a"]], [[["a"]]]))
    assert issubclass(Unavailable, ValueError)


# Tokens ---------------------------------------------------------------------------------------


@needs_java
def test_the_jar_splits_like_the_port() -> None:
    texts = ["A dog's tail.", "", "x\u2028y\nz", "Café “noir” (2)", "two cats, one dog!", ""]
    assert ptb_jar_words(texts) == [ptb_words(text) for text in texts]
    scores = score(["A dog!"], [["a dog ."]], tokenize="ptb-jar")
    assert scores.values["BLEU-2"] == pytest.approx(100)
    assert scores.signature.tokenization == "ptb-jar"
