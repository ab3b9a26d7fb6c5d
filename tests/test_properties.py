"""Properties that hold for any input: tokenizers, readers, metrics, decoding, the run folder.

``make test`` tries 25 examples of each, ``make battery`` 300; both are the same every time.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.examples import few
from support.tables import END, START, random_table, start_state, table_step

from captioner.data.read import read_records
from captioner.decoding.decode import decode
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.evaluation.score_files import read_rows
from captioner.metrics.scores import score
from captioner.runs import Taken, claimed
from captioner.tokenizers import TOKENIZERS, Vocabulary, build_tokenizer, restore_tokenizer

pytestmark = pytest.mark.reliability("properties")

ANY_TEXT = st.text(st.characters(), max_size=40) | st.text(
    st.sampled_from([*"a犬é.'\"<>-_ \n\t\0\ud800\u0301\u200d🐕ि"]), max_size=40
)
"""Texts of all characters, lone surrogates as well."""


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one example: a fixture would be shared by all of them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Tokenizers ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(sorted(TOKENIZERS))


@few
@given(NAMES, ANY_TEXT)
def test_any_text_becomes_tokens_that_a_vocabulary_accepts(name: str, text: str) -> None:
    words = TOKENIZERS[name].split(text)
    assert all(word and word.split() == [word] for word in words)
    vocabulary = Vocabulary.build([[*words, "a"]])
    assert {*words, "a"} - {*Vocabulary.special} == {*vocabulary.ordinary}


@few
@given(NAMES, st.lists(ANY_TEXT, min_size=1, max_size=4), ANY_TEXT)
def test_no_text_is_encoded_as_the_end_and_every_id_is_decoded(
    name: str, captions: list[str], text: str
) -> None:
    tokenizer = build_tokenizer([*captions, "a"], name=name, min_count=1)
    ids = tokenizer.encode(text)
    assert not {Vocabulary.pad, Vocabulary.start, Vocabulary.end} & {*ids}
    assert all(0 <= id < len(tokenizer.vocabulary) for id in ids)
    assert isinstance(tokenizer.decode(ids), str)
    assert restore_tokenizer(tokenizer.as_dict()).encode(text) == ids


@few
@given(NAMES, ANY_TEXT)
def test_a_decoded_caption_is_encoded_as_before(name: str, text: str) -> None:
    """What a model generates has the same tokens when it is scored or read again."""
    tokenizer = TOKENIZERS[name]
    once = tokenizer.join(tokenizer.split(text))
    twice = tokenizer.join(tokenizer.split(once))
    assert tokenizer.split(twice) == tokenizer.split(once)


# Readers ------------------------------------------------------------------------------------------

LAYOUTS = {
    "flickr": "Flickr8k.token.txt",
    "kaggle": "captions.txt",
    "karpathy": "dataset.json",
    "coco": "annotations/captions_train2017.json",
    "table": "captions.csv",
    "json": "captions.json",
    "folder": "0.txt",
}
CONTENT = st.binary(max_size=200) | ANY_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))


def require_own(error: Exception) -> None:
    """Check that an error is one line of ours."""
    assert type(error) is ValueError or isinstance(error, FileNotFoundError), repr(error)
    assert str(error).strip() and "\n" not in str(error)


@few
@given(st.sampled_from(sorted(LAYOUTS)), CONTENT, st.sampled_from(["utf-8", "gbk", "utf-16"]))
def test_any_bytes_are_records_or_one_clear_error(name: str, data: bytes, encoding: str) -> None:
    with folder() as root:
        (root / LAYOUTS[name]).parent.mkdir(exist_ok=True)
        (root / LAYOUTS[name]).write_bytes(data)
        (root / "train2017").mkdir()
        for image in (root / "0.png", root / "train2017" / "0.png"):
            image.write_bytes(b"")
        try:
            dataset = read_records(format=name, root=str(root), encoding=encoding)
        except (ValueError, OSError) as error:
            require_own(error)
        else:
            assert all(Path(record.image).is_file() for record in dataset.records)


@few
@given(st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]), CONTENT)
def test_any_bytes_are_captions_to_score_or_one_clear_error(suffix: str, data: bytes) -> None:
    with folder() as root:
        file = root / f"captions{suffix}"
        file.write_bytes(data)
        try:
            rows = read_rows(file)
        except ValueError as error:
            require_own(error)
        else:
            assert rows and all(row.image for row in rows)


# Metrics ------------------------------------------------------------------------------------------

CAPTION = st.lists(st.sampled_from("a dog runs on grass and the man".split()), max_size=9).map(
    " ".join
)
IMAGE = st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3))
IMAGES = st.lists(IMAGE, min_size=1, max_size=5)
MOST = {"BLEU": 100, "ROUGE": 100, "CIDEr": 1000}
"""The highest score: CIDEr is on the scale on which coco-caption's 10 is 1000."""


METRICS = ("bleu", "rouge-l", "cider", "cider-d")


def scores(images: list[Any], *metrics: str) -> dict[str, float]:
    """The scores of some metrics; of METRICS, if none is named."""
    candidates, references = [image[0] for image in images], [image[1] for image in images]
    return score(candidates, references, metrics=metrics or METRICS).values


@few
@given(IMAGES)
def test_scores_are_within_their_range(images: list[Any]) -> None:
    for name, value in scores(images).items():
        most = next(most for start, most in MOST.items() if name.startswith(start))
        assert -1e-9 <= value <= most + 1e-6


@few
@given(st.data(), IMAGES)
def test_the_order_of_images_and_references_changes_no_score(data: Any, images: list[Any]) -> None:
    order = data.draw(st.permutations(images))
    turned = [(candidate, references[::-1]) for candidate, references in order]
    assert scores(turned) == pytest.approx(scores(images))


@few
@given(st.lists(IMAGE.filter(lambda image: image[1][0].strip()), min_size=1, max_size=5))
def test_a_caption_equal_to_a_reference_is_perfect(images: list[Any]) -> None:
    equal = scores([(texts[0], texts) for _, texts in images], "bleu", "rouge-l")
    assert equal["BLEU-1"] == pytest.approx(100)
    assert equal["ROUGE-L"] == pytest.approx(100)
    best = {
        name: max(equal[name], value) for name, value in scores(images, "bleu", "rouge-l").items()
    }
    assert {n: best[n] for n in ("BLEU-1", "ROUGE-L")} == pytest.approx(
        {n: equal[n] for n in ("BLEU-1", "ROUGE-L")}
    )


@few
@given(IMAGES, CAPTION)
def test_another_reference_never_lowers_rouge(images: list[Any], reference: str) -> None:
    more = [(candidate, [*references, reference]) for candidate, references in images]
    assert scores(more, "rouge-l")["ROUGE-L"] >= scores(images, "rouge-l")["ROUGE-L"] - 1e-9


@few
@given(IMAGES, st.integers(2, 3))
def test_repeating_all_images_changes_neither_bleu_nor_rouge(images: list[Any], times: int) -> None:
    once, often = (scores(some, "bleu", "rouge-l") for some in (images, images * times))
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"):
        assert often[name] == pytest.approx(once[name])


# Decoding -----------------------------------------------------------------------------------------

LENGTH, VOCABULARY = 5, 7
OPTIONS = st.builds(
    DecodingOptions,
    beam_size=st.integers(1, 5),
    captions=st.just(1),
    length_penalty=st.sampled_from([0.0, 0.7, 1.0]),
    min_length=st.integers(0, 2),
    max_length=st.integers(3, LENGTH),
    no_repeat_ngram=st.integers(0, 2),
    early_stopping=st.booleans(),
)


def decoded(seed: int, options: DecodingOptions) -> tuple[torch.Tensor, list[list[Hypothesis]]]:
    """A random table of two images, and what decoding finds in it."""
    torch.manual_seed(seed)
    table = random_table(2, LENGTH, VOCABULARY)
    state = start_state(2)
    return table, decode(table_step(table), state, start=START, end=END, options=options)


@few
@given(st.integers(0, 10**6), OPTIONS)
def test_hypotheses_have_the_scores_of_the_model(seed: int, options: DecodingOptions) -> None:
    table, results = decoded(seed, options)
    for image, hypotheses in enumerate(results):
        for found in hypotheses:
            tokens = [*found.tokens, END] if found.finished else [*found.tokens]
            before = [START, *tokens[:-1]]
            steps = torch.log_softmax(table[image], -1)
            values = [float(steps[t, before[t], token]) for t, token in enumerate(tokens)]
            assert found.log_probs == pytest.approx(values, abs=1e-5)
            ranked = options.beam_size > 1  # a greedy caption has no other to be ranked with
            length = len(tokens) ** (options.length_penalty if ranked else 0)
            assert found.score == pytest.approx(sum(values) / length, abs=1e-5)


@few
@given(st.integers(0, 10**6), OPTIONS)
def test_hypotheses_satisfy_the_options_and_are_ranked(seed: int, options: DecodingOptions) -> None:
    for hypotheses in decoded(seed, options)[1]:
        assert hypotheses
        assert len({(h.tokens, h.finished) for h in hypotheses}) == len(hypotheses)
        ended = [h.score for h in hypotheses if h.finished]
        assert ended == sorted(ended, reverse=True)
        for found in hypotheses:
            assert END not in found.tokens
            assert found.finished or len(found.tokens) == options.max_length
            assert len(found.tokens) + found.finished <= options.max_length
            if not found.broken:
                n = options.no_repeat_ngram
                grams = [found.tokens[i : i + n] for i in range(len(found.tokens) - n + 1)]
                assert not n or len({*grams}) == len(grams)
                assert not found.finished or len(found.tokens) >= options.min_length


@few
@given(st.integers(0, 10**6), OPTIONS)
def test_the_probabilities_of_distinct_captions_add_to_at_most_one(seed, options) -> None:
    for hypotheses in decoded(seed, options)[1]:
        total = sum(float(torch.tensor(h.log_probs).sum().exp()) for h in hypotheses)
        assert total <= 1 + 1e-5


# The run folder -----------------------------------------------------------------------------------

FILES = ("config.yaml", "samples.jsonl", "notes.txt", "checkpoints/last.ckpt", "logs/csv/a.csv")
ENDS = st.sampled_from(["error", "interrupt", "kept", "done"])


@few
@given(st.sets(st.sampled_from(FILES)), st.sets(st.sampled_from(FILES)), ENDS)
def test_a_start_that_fails_leaves_the_files_that_were_there(before, written, end) -> None:
    assume(not any(name.startswith("checkpoints") for name in before))
    with folder() as place:
        run = place / "run"
        write(run, before, "before")
        try:
            with claimed(run) as claim:
                write(run, written - before, "written")
                claim.keep = end == "kept"
                if end != "done":
                    raise KeyboardInterrupt if end == "interrupt" else ValueError
        except (ValueError, KeyboardInterrupt):
            pass
        left = {name for name in FILES if (run / name).is_file()}
        assert before <= left
        assert all((run / name).read_text() == "before" for name in before)
        if end in ("kept", "done"):
            assert left == before | written
        else:  # what is not captioner's own stays
            assert left - before <= {"notes.txt"} & written


@few
@given(st.sets(st.sampled_from(FILES), min_size=1))
def test_a_run_with_a_checkpoint_is_never_written_to_by_a_new_training(names) -> None:
    with folder() as place:
        run = place / "run"
        write(run, names | {"checkpoints/last.ckpt"}, "before")
        with pytest.raises(Taken), claimed(run):
            raise AssertionError("claimed")
        left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert left == names | {"checkpoints/last.ckpt"}
        shutil.rmtree(run)


def write(run: Path, names: set[str], text: str) -> None:
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
