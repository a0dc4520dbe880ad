"""What must hold of every plan: whatever the seed, mixture, windows, slices and layout, and however many ranks and
workers run it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest

from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan, Step, rank_bins
from qwen_audio_train.samples import Lengths
from tests import plans


@dataclass(frozen=True)
class Echo:
    """In place of a batch builder: says what it was asked for."""

    def build(self, draws: Any) -> Any:
        return [draw.sample for draw in draws], None


def case(number: int) -> tuple[Plan, random.Random]:
    """A plan drawn at random, the same for a number."""
    chance = random.Random(number)
    sizes = {name: chance.choice([1, 3, 63, 64, 65, 300, 400]) for name in "abcd"[: chance.randint(1, 4)]}
    weights = None
    if chance.random() < 0.5:
        weights = {name: Fraction(chance.randint(1, 9), chance.randint(1, 7)) for name in sizes}
    budget = plans.budget(
        chance.choice(["packed", "padded"]),
        window_samples=chance.choice([20, 50, 200, 1000]),
        slice_samples=chance.choice([1, 7, 64, 100_000]),
        bins_per_step=chance.choice([1, 4, 6, 12]),
        encoder_frames=chance.choice([1500, 4000, 20_000]),
    )
    return Plan(plans.sources(sizes, weights), seed=chance.randint(0, 99), budget=budget), chance


@pytest.mark.parametrize("number", range(30))
def test_every_plan(number: int) -> None:
    plan, chance = case(number)
    ends = [plan.count_steps(epochs) for epochs in (1, 2)]
    steps = plans.first_steps(plan, ends[1])
    assert [step.index for step in steps] == list(range(ends[1]))
    assert [step.epoch for step in steps] == [0] * ends[0] + [1] * (ends[1] - ends[0])
    assert {len(step.bins) for step in steps} <= {plan.budget.bins_per_step}
    for step in steps:
        for members in step.bins:
            assert_within_budget(members, plan)
    assert_each_sample_once_an_epoch(plan, steps)
    assert_resumes_anywhere(plan, steps, chance)
    for world in plan.budget.legal_worlds():
        for step in steps[:3]:
            ranks = [rank_bins(step, rank, world) for rank in range(world)]
            assert {len(bins) for bins in ranks} == {len(step.bins) // world}
            assert all(ranks[place % world][place // world] is members for place, members in enumerate(step.bins))


def assert_within_budget(members: Any, plan: Plan) -> None:
    rows = list(zip(members.sources.tolist(), members.samples.tolist(), strict=True))
    for name, limit in (("llm_tokens", plan.budget.llm_tokens), ("encoder_frames", plan.budget.encoder_frames)):
        sizes = [int(getattr(plan.sources[source].lengths, name)[sample]) for source, sample in rows]
        used = len(sizes) * max(sizes, default=0) if plan.budget.layout == "padded" else sum(sizes)
        assert used <= limit


def assert_each_sample_once_an_epoch(plan: Plan, steps: list[Step]) -> None:
    """And every epoch of a source is whole before the next one begins, but for the windows that they share."""
    seen = Counter(plans.drawn(steps))
    assert not seen or max(seen.values()) == 1
    last = plan.segments[0].positions_of(plan.windows_of(1).stop)
    by_name = dict(zip(sorted(source.name for source in plan.sources), last, strict=True))
    for number, source in enumerate(plan.sources):
        epochs, part = divmod(by_name[source.name], len(source))
        for epoch in range(epochs + 1):
            samples = {sample for mine, drawn_in, sample in seen if mine == number and drawn_in == epoch}
            assert samples <= set(range(len(source)))
            assert len(samples) == (len(source) if epoch < epochs else part)


def assert_resumes_anywhere(plan: Plan, steps: list[Step], chance: random.Random) -> None:
    if not steps:
        return
    for at in (0, len(steps) - 1, chance.randrange(len(steps))):
        position = PlanPosition.from_json(plan.position_of(steps[at]).to_json())
        listed_otherwise = Plan(plan.sources, seed=plan.seed, budget=plan.budget)
        resumed, start = listed_otherwise.resumed(position)
        rest = list(islice(resumed.steps_from(start), len(steps) - at))
        assert plans.digest(rest) == plans.digest(steps[at:])
        assert resumed.windows_planned <= len({step.window for step in steps[at:]}) + 2
        assert plans.digest([resumed.step(at)]) == plans.digest([steps[at]])


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_ranks_and_workers_see_the_same_order(layout: str, workers: int) -> None:
    """Through real loader processes, stopped and gone on with by another number of both."""
    mixture = plans.sources({"a": 150, "bc": 90}, {"a": Fraction(1), "bc": Fraction(2)})
    plan = Plan(mixture, seed=5, budget=plans.budget(layout, window_samples=100))
    count = plan.count_steps(1)
    expected = [members.samples.tolist() for step in plans.first_steps(plan, count) for members in step.bins]
    worlds = {0: (3, 12), 1: (1, 4), 4: (2,)}[workers]
    for world in worlds:
        made = through_loaders(plan, count, world, workers, None)
        assert made == expected
    stopped = PlannedBatches(plan, Echo(), num_steps=count, rank=0, world=1).position(2)
    assert through_loaders(plan, count, worlds[0], workers, stopped) == expected[2 * 12 :]


def through_loaders(plan: Plan, count: int, world: int, workers: int, start: str | None) -> list[list[int]]:
    ranks = []
    for rank in range(world):
        fresh = Plan(plan.sources, seed=plan.seed, budget=plan.budget)
        batches = PlannedBatches(fresh, Echo(), num_steps=count, rank=rank, world=world)  # type: ignore[arg-type]
        batches.num_workers = workers
        if start is not None:
            batches.resume(start)
        ranks.append([samples for samples, _ in batches.loader()])
    assert len({len(bins) for bins in ranks}) == 1
    return [ranks[place % world][place // world] for place in range(world * len(ranks[0]))]


def test_a_shift_by_one_is_noticed() -> None:
    """The comparisons above would see a run that goes on one step, or one window, too late."""
    plan = Plan(plans.sources({"a": 500}), seed=5, budget=plans.budget(window_samples=100))
    steps = plans.first_steps(plan, 12)
    wrong = replace(plan.position_of(steps[4]), in_window=steps[4].in_window + 1)
    assert plans.digest(islice(plan.steps_from(wrong), 7)) != plans.digest(steps[4:11])
    for shifted in (
        replace(plan.position_of(steps[4]), window=steps[4].window + 1),
        plan.position_of(steps[5]),
    ):
        assert plans.digest(islice(plan.steps_from(shifted), 7)) != plans.digest(steps[4:11])
    moved = [replace(step, bins=(*step.bins[1:], step.bins[0])) for step in steps]
    assert plans.digest(moved) != plans.digest(steps)


def test_order_never_changes() -> None:
    """Regenerate (python -m tests.plans) only together with a higher PLAN_VERSION."""
    assert plans.golden_digests() == json.loads(plans.GOLDEN.read_text())


def test_lengths_are_read_where_they_are_drawn_only() -> None:
    """Resuming late in a large set costs a window's lengths and a few probes; nothing reads the arrays as a whole."""

    class Watched:
        read = 0

        def __init__(self, values: Any) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def __getitem__(self, at: Any) -> Any:
            Watched.read += np.size(self.values[at])
            return self.values[at]

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("read as a whole")

    sizes: Any = Watched(np.resize(np.arange(1, 400, dtype=np.int32), 300_000))
    source = Source("a", Lengths(sizes, sizes, sizes), "x")
    plan = Plan([source], seed=1, budget=plans.budget(window_samples=2000))
    window = int(0.95 * plan.segments[0].epoch_windows)
    next(plan.steps_from(replace(plan.position_at(0), step=12_345, window=window)))
    assert plan.windows_planned == 1
    assert 4000 < Watched.read < 9000
