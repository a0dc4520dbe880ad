from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.plan.bins import bin_cost, bin_size, build_bins, packed_bins, padded_bins
from qwen_audio_train.plan.budget import Budget


def _sizes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_padded_bins_are_runs_under_both_budgets() -> None:
    tokens, frames = _sizes(2, 3, 4, 5, 5), _sizes(0, 1, 1, 9, 1)
    assert padded_bins(tokens, frames, Budget(10, 9, 1, 8)) == [[4], [3], [2, 1], [0]]
    assert padded_bins(tokens, frames, Budget(10, 99, 1, 8)) == [[4, 3], [2, 1], [0]]


def test_packed_bins_fill_the_fullest_bin_that_still_takes_the_slot() -> None:
    tokens, frames = _sizes(6, 7, 3, 4), _sizes(0, 0, 0, 0)
    assert sorted(map(sorted, packed_bins(tokens, frames, Budget(10, 1, 1, 8)))) == [[0, 3], [1, 2]]
    frames = _sizes(5, 1, 1, 6)
    bins = packed_bins(tokens, frames, Budget(10, 10, 1, 8))
    assert not any({0, 3} <= set(slots) for slots in bins)  # 11 frames together
    assert sorted(slot for slots in bins for slot in slots) == [0, 1, 2, 3]


def test_size_and_cost_count_padding_in_the_padded_layout_only() -> None:
    tokens, frames = _sizes(4, 2), _sizes(6, 0)
    padded, packed = Budget(16, 24, 1, 8), Budget(16, 24, 1, 8, layout="packed")
    assert bin_size(tokens, frames, padded) == (8, 12)
    assert bin_size(tokens, frames, packed) == (6, 6)
    assert bin_cost([0, 1], tokens, frames, padded) == pytest.approx(1.0)


def test_a_slot_that_may_be_empty_is_not_left_alone() -> None:
    tokens = _sizes(1, *[3] * 51)
    budget = Budget(9, 9, 1, 8)
    assert [0] in build_bins(tokens, tokens, budget)
    accompanied = build_bins(tokens, tokens, budget, ragged_slot=0)
    assert [0] not in accompanied
    assert sorted(slot for slots in accompanied for slot in slots) == list(range(52))


@pytest.mark.parametrize("num_slots", [40, 400])
def test_whole_steps_without_empty_bins(num_slots: int) -> None:
    tokens = np.arange(1, num_slots + 1, dtype=np.int64) % 37 + 1
    bins = build_bins(tokens, tokens, Budget(100, 100, 7, 8))
    assert len(bins) % 7 == 0
    assert all(bins)


def test_fewer_slots_than_bins_in_a_step_leave_empty_bins() -> None:
    tokens = _sizes(1, 2, 3)
    bins = build_bins(tokens, tokens, Budget(100, 100, 5, 8))
    assert sorted(map(len, bins)) == [0, 0, 1, 1, 1]
