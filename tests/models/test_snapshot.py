"""A snapshot sees every change of a module's weights, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from captioner.models.snapshot import Snapshot, sums


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.Sequential(nn.Linear(40, 30)))


def test_nothing_changed() -> None:
    modules = [network(), nn.Linear(2, 2)]
    snapshot = Snapshot(modules).keep()
    assert snapshot.counted(modules) and snapshot.same(modules)
    assert not snapshot.counted(modules[:1]) and not snapshot.counted(modules[::-1])


def replace_tensor(m: nn.Sequential) -> None:
    m[2][0].weight = nn.Parameter(m[2][0].weight.detach().clone())  # type: ignore[index]


def replace_module(m: nn.Sequential) -> None:
    m[2] = nn.Identity()


def add_module(m: nn.Sequential) -> None:
    m[2].append(nn.Linear(3, 3))  # type: ignore[operator]


def add_buffer(m: nn.Sequential) -> None:
    m[2].register_buffer("more", torch.zeros(1))


def in_place(m: nn.Sequential) -> None:
    with torch.no_grad():
        m[0].bias.add_(1)


def other_memory(m: nn.Sequential) -> None:
    m[0].bias.data = m[0].bias.data.clone()


def other_dtype(m: nn.Sequential) -> None:
    m.double()


def other_strides(m: nn.Sequential) -> None:
    square = m[2][0].weight.data[:, :30]  # type: ignore[index]
    m[2][0].weight.data = square.t()  # type: ignore[index]


def add_hook(m: nn.Sequential) -> None:
    m[2][0].register_forward_hook(lambda *_: None)  # type: ignore[index]


def add_hook_before(m: nn.Sequential) -> None:
    m[0].register_forward_pre_hook(lambda *_: None)


COUNTED = [
    replace_tensor, replace_module, add_module, add_buffer, in_place, other_memory, other_dtype,
    other_strides, add_hook, add_hook_before,
]  # fmt: skip


@pytest.mark.parametrize("change", COUNTED)
def test_changes_that_torch_counts(change: Callable[[nn.Sequential], None]) -> None:
    module = network()
    snapshot = Snapshot([module]).keep()
    change(module)
    assert not snapshot.counted([module]) and not snapshot.same([module])


def through_data(m: nn.Sequential) -> None:
    m[0].weight.data[3, 1, 2, 0] += 1e-6


def through_numpy(m: nn.Sequential) -> None:
    m[2][0].bias.detach().numpy()[-1] += 1e-6  # type: ignore[index]


def two_change_places(m: nn.Sequential) -> None:
    weight = m[2][0].weight.data  # type: ignore[index]
    weight[0, :2], weight[7, 4:6] = weight[7, 4:6].clone(), weight[0, :2].clone()


def every_second_sign(m: nn.Sequential) -> None:
    m[2][0].weight.data[:, 1::2] *= -1  # type: ignore[index]


def two_signs(m: nn.Sequential) -> None:
    m[2][0].bias.data[[1, 5]] *= -1  # type: ignore[index]


def every_second_doubled(m: nn.Sequential) -> None:
    m[2][0].weight.data[:, 1::2] *= 2  # type: ignore[index]


def every_sign(m: nn.Sequential) -> None:
    m[2][0].weight.data *= -1  # type: ignore[index]


def corners_of_a_rectangle(m: nn.Sequential) -> None:
    words = m[2][0].weight.data.view(torch.int64)  # type: ignore[index]
    words[2, 3] += 5
    words[2, 9] -= 5
    words[8, 3] -= 5
    words[8, 9] += 5


def counter(m: nn.Sequential) -> None:
    m[1].num_batches_tracked.data.fill_(1)


UNCOUNTED = [
    through_data, through_numpy, two_change_places, every_second_sign, two_signs, every_sign,
    every_second_doubled, corners_of_a_rectangle, counter,
]  # fmt: skip


@pytest.mark.parametrize("change", UNCOUNTED)
def test_changes_that_only_the_values_show(change: Callable[[nn.Sequential], None]) -> None:
    module = network()
    snapshot = Snapshot([module])
    assert not snapshot.same([module])  # nothing to compare with
    snapshot.keep()
    assert snapshot.same([module])
    change(module)
    assert snapshot.counted([module]) and not snapshot.same([module])


def test_values_in_memory_that_numpy_cannot_view_as_one_block() -> None:
    linear = nn.Linear(30, 20)
    linear.weight = nn.Parameter(torch.rand(30, 20).t())
    snapshot = Snapshot([linear]).keep()
    assert snapshot.same([linear])
    linear.weight.data[4, 5] += 1
    assert not snapshot.same([linear])


def test_the_checksum_depends_on_values_and_not_on_where_they_are() -> None:
    first, second = Snapshot([network()]).keep(), Snapshot([network()]).keep()
    assert first.checksum == second.checksum is not None
    assert Snapshot([network()]).checksum is None
    other = network()
    through_data(other)
    assert Snapshot([other]).keep().checksum != first.checksum


@pytest.mark.reliability("damaged files")
@pytest.mark.parametrize("size", [1, 3, 8, 200, 40_000, 3 * 16_384 * 2 + 5])
def test_every_flipped_bit_changes_the_sums_and_so_do_pairs(size: int) -> None:
    values = torch.randn(size)
    before, bits = sums(values), values.view(torch.int32)
    draw = random.Random(size)
    for flips in (1, 2, 2, 4):
        for _ in range(50):
            # The same bit of several values: sums modulo a power of two would often stay equal.
            bit = draw.choice([31, 31, 30, 23, 0, draw.randrange(32)])
            places = draw.sample(range(size), min(flips, size))
            flip = -(2**31) if bit == 31 else 2**bit
            bits[places] ^= flip
            assert not np.array_equal(sums(values), before)
            bits[places] ^= flip
    for factor in (-1, 2, 0.5, -2):
        for every in (1, 2, 3, 4):
            values[every - 1 :: every] *= factor
            assert size < every or not np.array_equal(sums(values), before)
            values[every - 1 :: every] /= factor
    assert np.array_equal(sums(values), before)


def test_sums_are_the_same_on_every_machine() -> None:
    values = torch.arange(70_001, dtype=torch.int32)
    words = [int(n) for n in values[:70_000].numpy().view(np.uint64)]
    factors = []
    for place in range(1, 2 * 16_384 + 1):  # splitmix64, in integers of Python
        x = place * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        factors.append((x ^ x >> 31) | 1)
    expected = []
    for first in range(0, len(words), 16_384):
        block = words[first : first + 16_384]
        expected.append(sum(word * factor for word, factor in zip(block, factors)) % 2**64)
        halves = zip(block, factors[16_384:])
        expected.append(sum((word >> 32) * factor for word, factor in halves) % 2**64)
    rest = list(int(values[-1]).to_bytes(4, "little"))
    assert sums(values).tolist() == expected + rest
