from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.budget import LAYOUTS, Budget, require_plannable
from qwen_audio_train.plan.preview import describe
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.samples import Lengths
from tests import plans
from tests.plans import synthetic

BUDGET = Budget(llm_tokens=4096, encoder_frames=8000, bins_per_step=12, window_samples=1000)


def one(lengths: Lengths, *, seed: int = 0, budget: Budget = BUDGET) -> Plan:
    return Plan([Source("one", lengths, "x")], seed=seed, budget=budget)


def test_world_that_does_not_divide_is_refused_with_the_legal_ones() -> None:
    step = one(synthetic(100)).step(0)
    with pytest.raises(ConfigError, match="legal world sizes: 1, 2, 3, 4, 6, 12"):
        rank_bins(step, 0, 8)
    with pytest.raises(ConfigError, match="rank 2 is not in a world of 2"):
        rank_bins(step, 2, 2)
    assert BUDGET.legal_worlds() == (1, 2, 3, 4, 6, 12)


def test_a_step_whose_window_is_known_costs_one_window() -> None:
    run, fresh = (one(synthetic(50_000), budget=replace(BUDGET, layout="packed")) for _ in range(2))
    assert run.segments[0].epoch_windows == 50
    assert run.count_steps(0.5) == -(-run.steps_in_epoch(0) // 2)
    assert run.windows_planned == 50, "counted once"
    for times, share in enumerate((0.2, 0.5, 0.95), start=1):
        index = int(share * run.steps_in_epoch(0))
        _, start = fresh.resumed(run.position_at(index))
        step = next(fresh.steps_from(start))
        assert step.index == index
        assert fresh.step(index).in_window == step.in_window
        assert fresh.windows_planned == times


def test_an_index_out_of_the_blue_is_found_by_walking() -> None:
    run = one(synthetic(5000))
    steps = plans.first_steps(run, 60)
    walking = one(synthetic(5000))
    assert plans.digest([walking.step(59)]) == plans.digest(steps[59:])
    _, start = walking.resumed(run.position_of(steps[50]))
    next(walking.steps_from(start))
    assert plans.digest([walking.step(3)]) == plans.digest(steps[3:4]), "before where it began, too"
    with pytest.raises(IndexError, match="count from 0"):
        run.step(-1)


def test_epochs_and_seeds_differ_in_order_and_in_who_shares_a_bin() -> None:
    lengths = synthetic(5000)
    plan, other = (one(lengths, seed=seed) for seed in (1, 2))
    first, second, third = _bins(plan, 0), _bins(plan, 1), _bins(other, 0)
    for left, right in ((first, second), (first, third)):
        assert len(left & right) < 0.02 * len(left)


def _bins(plan: Plan, epoch: int) -> set[frozenset[int]]:
    return {
        frozenset(members.samples.tolist())
        for window in plan.windows_of(epoch)
        for step in range(len(plan.window(window)))
        for members in plan.window(window).bins(step)
    }


def test_without_shuffle_samples_come_as_they_lie_and_every_epoch_is_alike() -> None:
    plan = one(synthetic(500), seed=1, budget=replace(BUDGET, shuffle=False, window_samples=100))
    assert _bins(plan, 0) == _bins(plan, 5)
    for window in range(5):
        assert sorted(plan.window(window).drawn.samples.tolist()) == list(range(100 * window, 100 * window + 100))


@pytest.mark.parametrize(("layout", "most"), [("padded", 0.08), ("packed", 0.01)])
def test_little_padding_and_little_waiting(layout: str, most: float) -> None:
    budget = Budget(4096, 12_000, 8, 30_000, layout=layout)
    preview = describe(one(synthetic(30_000), budget=budget), 0)
    waste = preview.token_padding_share if layout == "padded" else preview.unused_token_share
    assert 0 < waste < most
    assert preview.frame_padding_share < (0.08 if layout == "padded" else 0.001)
    assert 1 < preview.imbalance < 1.05
    assert 0 < preview.waiting_share < 0.05
    assert (preview.samples, preview.empty_bins) == (30_000, 0)


def test_preview_counts_what_the_bins_compute() -> None:
    lengths = Lengths(np.array([4, 2, 2], np.int32), np.array([1, 1, 1], np.int32), np.array([2, 2, 0], np.int32))
    preview = describe(one(lengths, budget=Budget(12, 6, 1, 4)), 0)
    assert (preview.steps, preview.bins, preview.llm_tokens, preview.encoder_frames) == (1, 1, 8, 4)
    assert preview.token_padding_share == pytest.approx(1 - 8 / 12)
    assert preview.frame_padding_share == pytest.approx(1 - 4 / 6)
    assert preview.supervised_tokens == 3


def test_preview_says_what_each_source_gives() -> None:
    weights = {"a": Fraction(3), "bc": Fraction(1)}
    plan = Plan(plans.sources({"a": 400, "bc": 400}, weights), seed=0, budget=plans.budget())
    done: list[tuple[int, int]] = []
    preview = describe(plan, 0, progress=lambda *at: done.append(at))
    assert done == [(1, 2), (2, 2)]
    a, bc = preview.sources
    assert (a.name, a.samples, a.share, a.epochs) == ("a", 600, 0.75, 1.5)
    assert (bc.name, bc.samples, bc.share, bc.epochs) == ("bc", 200, 0.25, 0.5)
    assert a.hours + bc.hours == pytest.approx(preview.encoder_frames / 50 / 3600)


def test_samples_over_the_budget_are_counted_and_named() -> None:
    tokens, frames = np.array([10, 90, 95, 0], np.int32), np.array([10, 10, 600, 1], np.int32)
    source, budget = Source("one", Lengths(tokens, tokens, frames)), Budget(80, 500, 1, 4)
    with pytest.raises(ConfigError) as caught:
        require_plannable([source], budget)
    over, under, long = caught.value.problems
    assert "one: 2 of 4 samples exceed the bin budget of 80 llm_tokens: the first is sample 1 with 90" in over
    assert "the largest has 95" in over
    assert "1 of 4 samples have fewer than 1 llm_tokens: the first is sample 3 with 0" in under
    assert "1 of 4 samples exceed the bin budget of 500 encoder_frames: the first is sample 2 with 600" in long
    with pytest.raises(ConfigError, match="one: sample . has (90|95|0) llm_tokens, must be 1 to 80"):
        Plan([source], seed=0, budget=budget).step(0)


def test_empty_set_and_bad_budget_are_refused() -> None:
    none = np.zeros(0, np.int32)
    with pytest.raises(ConfigError, match="one: there are no samples"):
        one(Lengths(none, none, none))
    with pytest.raises(ConfigError) as caught:
        Budget(0, -1, 4, 2, layout="bucket", slice_samples=0)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_mapped_lengths_give_the_same_steps(layout: str, tmp_path: Path) -> None:
    held = synthetic(3000)
    table = np.stack([held.llm_tokens, held.supervised_tokens, held.encoder_frames])
    np.save(tmp_path / "lengths.npy", table)
    mapped = Lengths(*np.load(tmp_path / "lengths.npy", mmap_mode="r"))
    budget = replace(BUDGET, layout=layout)
    one_plan, other = one(held, budget=budget), one(mapped, budget=budget)
    assert one_plan.hash == other.hash
    assert plans.digest(plans.first_steps(one_plan, 20)) == plans.digest(plans.first_steps(other, 20))
