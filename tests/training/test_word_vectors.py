"""Pretrained word vectors: reading, coverage, and invalid files."""

import pickle
from pathlib import Path

import numpy
import pytest
import torch

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.models.decoders.show_tell import ShowTell
from captioner.runs import LAST
from captioner.tokenizers import Vocabulary
from captioner.training import word_vectors
from captioner.training.train import train

VOCABULARY = Vocabulary.build([["a", "dog", "runs"], ["a", "cat"], ["a", "zyzzyva"]])
GLOVE = "the 1 2 3\na 0.5 -1.5 2e-1\n. . . 7 8 9\ndog 4 5 6\ndog 9 9 9\n<end> 1 1 1\ncat -4 -5 -6\n"


def decoder(width: int = 3) -> ShowTell:
    return ShowTell(
        vocabulary_size=len(VOCABULARY), feature_size=5, embedding_size=width, hidden_size=4
    )


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("header", ["", "7 3\n"])
def test_vectors_are_copied_and_other_rows_do_not_change(tmp_path, header: str) -> None:
    """GloVe has no header, fastText has one; the first vector of a word is used."""
    part = decoder()
    before = part.words.weight.detach().clone()
    captions = [[VOCABULARY.id("a"), VOCABULARY.id("dog")], [VOCABULARY.id("runs")], []]
    coverage = word_vectors.fill(part, VOCABULARY, write(tmp_path, header + GLOVE), captions)
    expected = {"a": [0.5, -1.5, 0.2], "dog": [4, 5, 6], "cat": [-4, -5, -6]}
    for id, word in enumerate(VOCABULARY.words):
        row = torch.tensor(expected.get(word, before[id].tolist()), dtype=torch.float32)
        torch.testing.assert_close(part.words.weight.detach()[id], row, rtol=0, atol=1e-7)
    assert coverage.words == pytest.approx(3 / 5)
    assert coverage.tokens == pytest.approx(2 / 3)
    assert part.words.weight.requires_grad


def test_only_words_of_the_vocabulary_are_kept(tmp_path) -> None:
    lines = [f"word{n} 1 2 3\n" for n in range(20_000)]
    vectors = word_vectors.read(
        write(tmp_path, "".join(lines) + "cat 3 2 1\n"), VOCABULARY, width=3
    )
    assert list(vectors) == [VOCABULARY.id("cat")]
    numpy.testing.assert_array_equal(vectors[VOCABULARY.id("cat")], [3, 2, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 2 3 4\n", "vectors of 4 numbers; set decoder.embedding_size=4 .it is 3"),
        ("9 300\na 1 2 3\n", "vectors of 300 numbers"),
        ("the 1 2 3\na 1 2\n", "line 2: 'a' has 2 numbers"),
        ("the 1 2 3\na 1 nan 2\n", "line 2: 'a' has 3 numbers, or infinite ones"),
        ("the 1 2 3\n", "contains none of the 5 words"),
        (b"\x80\x04\x00\x00", "line 1: not a text file of word vectors"),
        (b"\x89PNG\r\n\x1a\n", "line 1: not a text file of word vectors"),
        (b"x" * 100_000, "line 1: not a text file of word vectors"),
        (pickle.dumps({"a": [1.0, 2.0, 3.0]}), "training.word_vectors=.*vectors.txt"),
        ("", "contains none of the 5 words"),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(tmp_path, content, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        word_vectors.fill(decoder(), VOCABULARY, write(tmp_path, content), [])
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="training.word_vectors=.*no such file"):
        word_vectors.read(tmp_path / "absent.txt", VOCABULARY, width=3)


def test_a_frozen_embedding_keeps_the_vectors_of_the_file(tiny, tmp_path, capsys) -> None:
    numbers = " ".join(str(n / 10) for n in range(16))  # decoder.embedding_size of tiny
    path = write(tmp_path, f"the {numbers}\na {numbers}\n")
    options = [f"training.word_vectors={path}", "training.freeze_words=true"]
    config = compose([*tiny, *options, "trainer.max_epochs=1"])
    run = train(config, tmp_path / "run", report=print)
    assert "word vectors of" in (printed := capsys.readouterr().out)
    assert "% of the vocabulary" in printed
    best = checkpoint.read(run.best)
    row = best.weights["decoder.words.weight"][best.tokenizer.vocabulary.id("a")]
    torch.testing.assert_close(row, torch.arange(16) / 10)
    path.unlink()  # resuming does not need the file
    config["trainer"]["max_epochs"] = 2
    last = checkpoint.find(run.folder, name=LAST)
    train(config, run.folder, resume=last)
    again = checkpoint.read(last).weights["decoder.words.weight"]
    assert torch.equal(again, best.weights["decoder.words.weight"])
