from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwen_audio_train.plan.bins import best_fit, bin_costs, bin_sizes, pack, runs, spread_evenly
from qwen_audio_train.plan.budget import LAYOUTS, Budget
from tests.plans import synthetic


def sizes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def members(bin_of: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(bin_of == number).tolist() for number in range(int(bin_of.max()) + 1)]


def test_padded_bins_are_runs_under_both_budgets() -> None:
    tokens, frames, order = sizes(2, 3, 4, 5, 5), sizes(0, 1, 1, 9, 1), np.arange(5)
    assert members(runs(order, tokens, frames, Budget(10, 9, 1, 8))) == [[4], [3], [1, 2], [0]]
    assert members(runs(order, tokens, frames, Budget(10, 99, 1, 8))) == [[3, 4], [1, 2], [0]]


def test_best_fit_takes_the_fullest_bin_that_has_space_in_both_budgets() -> None:
    tokens, frames = sizes(6, 7, 3, 4), sizes(0, 0, 0, 0)
    assert sorted(members(best_fit(tokens, frames, Budget(10, 1, 1, 8)))) == [[0, 3], [1, 2]]
    bins = members(best_fit(tokens, sizes(5, 1, 1, 6), Budget(10, 10, 1, 8)))
    assert not any({0, 3} <= set(slots) for slots in bins)  # 11 frames together
    assert sorted(slot for slots in bins for slot in slots) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("llm_tokens", "encoder_frames"), [(4096, 12_000), (4096, 5600), (20_000, 30_000), (1200, 1500)]
)
def test_best_fit_keeps_both_budgets_and_wastes_little_of_the_scarcer(llm_tokens: int, encoder_frames: int) -> None:
    lengths = synthetic(5000)
    tokens, frames = lengths.llm_tokens.astype(np.int64), lengths.encoder_frames.astype(np.int64)
    bin_of = best_fit(tokens, frames, Budget(llm_tokens, encoder_frames, 1, 8, layout="packed"))
    used_tokens, used_frames = (np.bincount(bin_of, weights=each) for each in (tokens, frames))
    assert used_tokens.max() <= llm_tokens
    assert used_frames.max() <= encoder_frames
    assert max(used_tokens.mean() / llm_tokens, used_frames.mean() / encoder_frames) > 0.93


def test_a_sample_that_fills_the_rest_exactly_still_fits() -> None:
    for budget in (Budget(10, 9, 1, 8), Budget(4096, 4095, 1, 8)):
        tokens = sizes(budget.llm_tokens - 4, 4)
        assert len(members(best_fit(tokens, sizes(1, 1), budget))) == 1


def test_spreading_evenly_levels_cost_or_gives_up() -> None:
    tokens = np.arange(1, 101, dtype=np.int64)
    budget = Budget(1100, 1100, 5, 100, layout="packed")
    bin_of = spread_evenly(tokens, tokens, 5, budget)
    assert bin_of is not None
    assert np.ptp(np.bincount(bin_of, weights=tokens)) <= 2
    assert spread_evenly(tokens, tokens, 5, replace(budget, llm_tokens=1009)) is None


def test_size_and_cost_count_padding_in_the_padded_layout_only() -> None:
    tokens, frames, both = sizes(4, 2), sizes(6, 0), np.zeros(2, np.int64)
    padded, packed = Budget(16, 24, 1, 8), Budget(16, 24, 1, 8, layout="packed")
    assert [int(size[0]) for size in bin_sizes(both, 1, tokens, frames, padded)] == [8, 12]
    assert [int(size[0]) for size in bin_sizes(both, 1, tokens, frames, packed)] == [6, 6]
    assert int(bin_costs(both, 1, tokens, frames, padded)[0]) == 16 * 24  # half of each budget


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [40, 400, 4000])
def test_whole_steps_without_empty_bins(num_samples: int, layout: str) -> None:
    tokens = np.arange(1, num_samples + 1, dtype=np.int64) % 37 + 1
    budget = Budget(100, 100, 7, 8, layout=layout)
    bin_of, num_bins = pack(tokens, tokens, budget)
    assert num_bins % 7 == 0
    assert np.bincount(bin_of, minlength=num_bins).min() > 0
    assert bin_sizes(bin_of, num_bins, tokens, tokens, budget)[0].max() <= 100


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_samples_than_bins_in_a_step_leave_empty_bins(layout: str) -> None:
    tokens = sizes(1, 2, 3)
    bin_of, num_bins = pack(tokens, tokens, Budget(100, 100, 5, 8, layout=layout))
    assert num_bins == 5
    assert sorted(np.bincount(bin_of, minlength=5).tolist()) == [0, 0, 1, 1, 1]


def test_large_samples_that_cannot_be_spread_are_split_off() -> None:
    """One step and a bit, of samples that fill a bin each but for crumbs."""
    tokens = np.concatenate([np.full(120, 99), np.ones(100)]).astype(np.int64)
    budget = Budget(100, 100, 7, 8, layout="packed")
    bin_of, num_bins = pack(tokens, tokens, budget)
    assert num_bins == 126
    assert bin_sizes(bin_of, num_bins, tokens, tokens, budget)[0].max() <= 100
