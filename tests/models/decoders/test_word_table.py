"""A table of projected words: the rows of one product, and the same ones in any order."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from captioner.models.decoders.word_table import BLOCK, WordTable

V, E, WIDTH = 5 * BLOCK + 3, 24, 40
WORDS = torch.randn(V, E, generator=torch.Generator().manual_seed(1))
LAYER = nn.Linear(E, WIDTH)


def bits(table: WordTable, tokens: list[int]) -> torch.Tensor:
    return table[torch.tensor(tokens)]


def test_rows_are_those_of_one_product() -> None:
    expected = LAYER(WORDS)
    table = WordTable(LAYER, WORDS)
    for _ in range(2):
        tokens = torch.randperm(V)
        torch.testing.assert_close(table[tokens], expected[tokens])
    assert not table[tokens].requires_grad
    assert table[tokens[:0]].shape == (0, WIDTH)


def test_rows_do_not_depend_on_what_was_read_before() -> None:
    at_once = bits(WordTable(LAYER, WORDS), list(range(V)))
    for seed in range(5):
        table = WordTable(LAYER, WORDS)
        order = torch.randperm(V, generator=torch.Generator().manual_seed(seed)).tolist()
        for first in range(0, V, 7):
            tokens = order[first : first + 7]
            assert torch.equal(bits(table, tokens), at_once[tokens])


def test_only_words_near_those_that_are_read_are_projected() -> None:
    projected: list[int] = []

    def project(words: torch.Tensor) -> torch.Tensor:
        projected.append(len(words))
        return LAYER(words)

    table = WordTable(project, WORDS)
    for tokens in ([0], [BLOCK - 1, 1], [BLOCK], [BLOCK + 5, 2 * BLOCK - 1], [V - 1, V - 2]):
        bits(table, tokens)
    assert projected == [BLOCK, BLOCK, 3]


def test_a_small_vocabulary_is_one_block() -> None:
    table = WordTable(LAYER, WORDS[:3])
    torch.testing.assert_close(bits(table, [2, 0, 2]), LAYER(WORDS[:3])[[2, 0, 2]])


@pytest.mark.reliability("shared objects")
def test_several_threads_may_read_it() -> None:
    expected = bits(WordTable(LAYER, WORDS), list(range(V)))
    for _ in range(20):
        table = WordTable(LAYER, WORDS)
        orders = [torch.randperm(V).tolist() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda order, of=table: bits(of, order), orders))  # type: ignore[misc]
        assert all(torch.equal(row, expected[order]) for row, order in zip(results, orders))


def test_it_computes_in_the_precision_and_mode_of_its_creation() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        table = WordTable(LAYER, WORDS)
        expected = LAYER(WORDS[BLOCK : 2 * BLOCK])
    assert expected.dtype == torch.bfloat16
    rows = bits(table, list(range(BLOCK, 2 * BLOCK)))  # another mode, and no autocast
    assert rows.dtype == torch.bfloat16 and torch.equal(rows, expected)
