from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.budget import LAYOUTS, Budget
from qwen_audio_train.plan.order import key, mixed
from qwen_audio_train.plan.preview import describe
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.samples import Lengths

GOLDEN = Path(__file__).parents[2] / "golden" / "plan_order.json"
BUDGET = Budget(llm_tokens=4096, encoder_frames=8000, bins_per_step=12, window_samples=1000)


def synthetic(num_samples: int, seed: int = 0) -> Lengths:
    """Speech-like lengths without a random-number library: seconds skewed to short, 5 % of the samples text only."""
    draws = [
        mixed(np.arange(num_samples, dtype=np.uint64) + np.uint64(key(seed, part))) >> np.uint64(40)
        for part in range(4)
    ]
    seconds, rate, extra, text_only = (draw.astype(np.int64) for draw in draws)
    frames = 25 + 1475 * (seconds >> 12) ** 2 // (1 << 24)
    text = 10 + extra % 30 + frames * (2 + rate % 4) // 50
    frames[text_only % 20 == 0] = 0
    tokens = (frames // 2 + text).astype(np.int32)
    return Lengths(tokens, text.astype(np.int32), frames.astype(np.int32))


def _epoch_samples(plan: Plan, epoch: int) -> np.ndarray:
    first = plan.first_step(epoch)
    bins = [bin_ for k in range(plan.steps_in_epoch(epoch)) for bin_ in plan.step(first + k).bins]
    return np.concatenate(bins)


@pytest.mark.parametrize("encoder_frames", [8000, 2500])  # tokens are what is scarce, or frames are
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [1, 5, 12, 13, 100, 999, 1000, 2001, 3456, 7000])
def test_each_sample_once_an_epoch_in_equal_steps_within_budget(
    layout: str, num_samples: int, encoder_frames: int
) -> None:
    lengths = synthetic(num_samples)
    budget = replace(BUDGET, layout=layout, encoder_frames=encoder_frames)
    for seed, epochs in ((0, (0, 3)), (7, (1,))):
        plan = Plan(lengths, seed=seed, budget=budget)
        for epoch in epochs:
            assert np.array_equal(np.sort(_epoch_samples(plan, epoch)), np.arange(num_samples))
            first = plan.first_step(epoch)
            for index in range(first, first + plan.steps_in_epoch(epoch)):
                step = plan.step(index)
                assert (step.index, step.epoch, len(step.bins)) == (index, epoch, 12)
                for members in step.bins:
                    _assert_within_budget(members, lengths, budget)


def _assert_within_budget(members: np.ndarray, lengths: Lengths, budget: Budget) -> None:
    if len(members) == 0:
        assert len(lengths) < 12  # the only case: fewer samples than bins
        return
    for sizes, limit in ((lengths.llm_tokens, budget.llm_tokens), (lengths.encoder_frames, budget.encoder_frames)):
        mine = sizes[members]
        assert (len(members) * mine.max() if budget.layout == "padded" else mine.sum()) <= limit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_world_size_runs_the_same_steps(layout: str) -> None:
    plan = Plan(synthetic(2500), seed=3, budget=replace(BUDGET, layout=layout))
    for index in range(plan.steps_in_epoch(0)):
        step = plan.step(index)
        for world in (1, 2, 3, 4, 6, 12):
            per_rank = [rank_bins(step, rank, world) for rank in range(world)]
            assert {len(bins) for bins in per_rank} == {12 // world}
            together = [per_rank[place % world][place // world] for place in range(12)]
            assert all(mine is planned for mine, planned in zip(together, step.bins, strict=True))


def test_world_that_does_not_divide_is_refused_with_the_legal_ones() -> None:
    step = Plan(synthetic(100), seed=0, budget=BUDGET).step(0)
    with pytest.raises(ConfigError, match="legal world sizes: 1, 2, 3, 4, 6, 12"):
        rank_bins(step, 0, 8)
    assert BUDGET.legal_worlds() == (1, 2, 3, 4, 6, 12)


def test_steps_are_a_pure_function_of_the_index() -> None:
    lengths = synthetic(5000)
    unbroken = Plan(lengths, seed=1, budget=BUDGET)
    steps = [unbroken.step(index) for index in range(2 * unbroken.steps_in_epoch(0))]
    resumed = Plan(lengths, seed=1, budget=BUDGET)
    for index in reversed(range(0, len(steps), 7)):
        again = resumed.step(index)
        assert again.epoch == steps[index].epoch
        assert all(np.array_equal(a, b) for a, b in zip(again.bins, steps[index].bins, strict=True))


def test_a_step_anywhere_costs_one_window() -> None:
    plan = Plan(synthetic(50_000), seed=1, budget=BUDGET)
    assert plan.num_windows == 50
    for times, share in enumerate((0.0, 0.5, 0.95), start=1):
        index = int(share * plan.steps_in_epoch(0))
        plan.step(index)
        plan.step(index)
        assert plan.windows_planned == times


def test_epochs_and_seeds_differ_in_order_and_in_who_shares_a_bin() -> None:
    lengths = synthetic(5000)
    plan, other = (Plan(lengths, seed=seed, budget=BUDGET) for seed in (1, 2))
    first, second, third = _bins(plan, 0), _bins(plan, 1), _bins(other, 0)
    for one, two in ((first, second), (first, third)):
        assert len(one & two) < 0.02 * len(one)


def _bins(plan: Plan, epoch: int) -> set[frozenset[int]]:
    first = plan.first_step(epoch)
    return {
        frozenset(members.tolist())
        for index in range(first, first + plan.steps_in_epoch(epoch))
        for members in plan.step(index).bins
    }


def test_without_shuffle_every_epoch_is_the_same() -> None:
    plan = Plan(synthetic(500), seed=1, budget=replace(BUDGET, shuffle=False))
    assert np.array_equal(_epoch_samples(plan, 0), _epoch_samples(plan, 5))


@pytest.mark.parametrize(("layout", "num_samples", "most"), [("padded", 30_000, 0.08), ("packed", 30_000, 0.02)])
def test_little_padding_and_little_waiting(layout: str, num_samples: int, most: float) -> None:
    budget = Budget(8192, 20_000, 8, 30_000, layout=layout)
    preview = describe(Plan(synthetic(num_samples), seed=0, budget=budget), 0)
    waste = preview.token_padding_share if layout == "padded" else preview.unused_token_share
    assert 0 < waste < most
    assert preview.waiting_share < 0.05
    assert (preview.samples, preview.empty_bins) == (num_samples, 0)


def test_preview_counts_what_the_bins_compute() -> None:
    lengths = Lengths(np.array([4, 2, 2], np.int32), np.array([1, 1, 1], np.int32), np.array([2, 2, 0], np.int32))
    preview = describe(Plan(lengths, seed=0, budget=Budget(12, 6, 1, 4)), 0)
    assert (preview.steps, preview.bins, preview.llm_tokens, preview.encoder_frames) == (1, 1, 8, 4)
    assert preview.token_padding_share == pytest.approx(1 - 8 / 12)
    assert preview.frame_padding_share == pytest.approx(1 - 4 / 6)


def test_samples_over_the_budget_are_counted_and_named() -> None:
    tokens, frames = np.array([10, 90, 95], np.int32), np.array([10, 10, 600], np.int32)
    with pytest.raises(ConfigError) as caught:
        Plan(Lengths(tokens, tokens, frames), seed=0, budget=Budget(80, 500, 1, 4))
    first, second = caught.value.problems
    assert "2 of 3 samples exceed the bin budget of 80 llm_tokens: the first is sample 1 with 90" in first
    assert "1 of 3 samples exceed the bin budget of 500 encoder_frames: the first is sample 2 with 600" in second


def test_empty_set_and_bad_budget_are_refused() -> None:
    none = np.zeros(0, np.int32)
    with pytest.raises(ConfigError, match="no samples"):
        Plan(Lengths(none, none, none), seed=0, budget=BUDGET)
    with pytest.raises(ConfigError) as caught:
        Budget(0, -1, 4, 2, layout="bucket")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


def test_order_never_changes() -> None:
    """Regenerate tests/golden/plan_order.json only together with a higher PLAN_VERSION."""
    assert _digests() == json.loads(GOLDEN.read_text())


def _digests() -> dict[str, str]:
    digests = {}
    for layout in LAYOUTS:
        plan = Plan(synthetic(3001), seed=11, budget=replace(BUDGET, layout=layout))
        digest = hashlib.sha256()
        for index in range(2 * plan.steps_in_epoch(0)):
            for members in plan.step(index).bins:
                digest.update(members.astype("<i4").tobytes() + b"|")
        digests[layout] = digest.hexdigest()
        digests[f"{layout} plan hash"] = plan.hash
    return digests
