"""A snapshot sees every change of a module's weights, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from captioner.models.snapshot import Snapshot


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


COUNTED = [
    replace_tensor, replace_module, add_module, add_buffer, in_place, other_memory, other_dtype
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


def counter(m: nn.Sequential) -> None:
    m[1].num_batches_tracked.data.fill_(1)


@pytest.mark.parametrize("change", [through_data, through_numpy, two_change_places, counter])
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
