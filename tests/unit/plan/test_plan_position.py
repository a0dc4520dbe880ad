from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice, takewhile

import pytest

from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from tests import plans

WEIGHTS = {"a": Fraction(1, 2), "bc": Fraction(1, 2)}
BUDGET = plans.budget(window_samples=100)


def make(sources: list[Source] | None = None, **changed) -> Plan:
    mixture = plans.sources({"a": 400, "bc": 250}, WEIGHTS) if sources is None else sources
    return Plan(mixture, **{"seed": 1, "budget": BUDGET, **changed})


def middle(plan: Plan) -> PlanPosition:
    """In the middle of the third window."""
    return plan.position_of(next(step for step in plan.steps_from() if (step.window, step.in_window) == (2, 1)))


def test_round_trip_through_json() -> None:
    plan = make()
    position = plan.position_at(plan.steps_in_epoch(0) + 1)
    restored = PlanPosition.from_json(position.to_json())
    assert restored == position
    assert (restored.epoch, restored.in_window, restored.seed) == (1, 1, 1)
    assert set(json.loads(position.to_json())) >= {"step", "window", "in_window", "epoch", "seed", "segments"}
    resumed, start = make().resumed(restored)
    assert start == position
    assert resumed.hash == plan.hash


def test_position_of_a_step_and_of_its_index_agree() -> None:
    plan = make()
    for step in plans.first_steps(plan, 30):
        assert plan.position_of(step) == plan.position_at(step.index)


def other_sources(change: str) -> list[Source]:
    a, bc = plans.sources({"a": 400, "bc": 250}, WEIGHTS)
    added = plans.sources({"d": 30}, {"d": Fraction(1, 2)})
    return {
        "added": [a, bc, *added],
        "removed": [a],
        "renamed": [a, replace(bc, name="e")],
        "index": [a, replace(bc, fingerprint="another index of bc")],
        "weight": [a, replace(bc, weight=Fraction(1, 3))],
        "size": [a, *plans.sources({"bc": 251}, WEIGHTS)],
        "lengths": [a, replace(bc, lengths=plans.synthetic(250, 99))],
    }[change]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"budget": replace(BUDGET, llm_tokens=1999)}, "budget.llm_tokens was 2000, is 1999"),
        ({"budget": replace(BUDGET, bins_per_step=6)}, "budget.bins_per_step was 12, is 6"),
        ({"budget": replace(BUDGET, layout="padded")}, "budget.layout was packed, is padded"),
        ({"budget": replace(BUDGET, slice_samples=32)}, "budget.slice_samples was 64, is 32"),
        ({"budget": replace(BUDGET, shuffle=False)}, "budget.shuffle was True, is False"),
        ({"sources": other_sources("added")}, "source d was added"),
        ({"sources": other_sources("removed")}, "source bc was removed"),
        ({"sources": other_sources("renamed")}, "source bc was removed; source e was added"),
        ({"sources": other_sources("index")}, "sources.bc.index was index of bc, is another index of bc"),
        ({"sources": other_sources("weight")}, "sources.bc.weight was 1/2, is 1/3"),
        ({"sources": other_sources("size")}, "sources.bc.samples was 250, is 251"),
        ({"sources": other_sources("lengths")}, "sources.bc.lengths was "),
    ],
)
def test_another_plan_is_refused_with_what_changed_or_accepted_with_a_record_of_it(changed: dict, says: str) -> None:
    run = make()
    position = middle(run)
    with pytest.raises(CheckpointError) as caught:
        make(**changed).resumed(position)
    assert f"step {position.step} of another plan" in str(caught.value)
    assert says in str(caught.value)
    plan, start = make(**changed).resumed(position, accept_changes=True)
    assert says.partition(" is ")[0] in "; ".join(start.segments[-1].changed)
    assert [segment.identity for segment in start.segments] == [run.identity(), plan.identity()]
    again, there = make(**changed).resumed(PlanPosition.from_json(start.to_json()))
    assert there == start
    steps = list(islice(plan.steps_from(start), 12))
    assert steps[0].index == position.step
    assert plans.digest(again.steps_from(there) and islice(again.steps_from(there), 12)) == plans.digest(steps)


def test_other_weights_hold_exactly_from_the_next_window_on() -> None:
    run = make()
    position = middle(run)
    assert position.in_window > 0
    new = {"a": Fraction(9, 10), "bc": Fraction(1, 10)}
    plan, start = run.with_segment(position, new)
    assert (start.step, start.window, start.in_window) == (position.step, position.window, position.in_window)
    until = plan.windows_of(1).stop
    steps = list(takewhile(lambda step: step.window < until, plan.steps_from(start)))
    rest = [step for step in plans.first_steps(run, 200) if step.window == 2 and step.in_window >= position.in_window]
    assert plans.digest(steps[: len(rest)]) == plans.digest(rest), "the window under way is run to its end"
    assert [step.index for step in steps] == list(range(position.step, position.step + len(steps)))
    for window in range(3, until):
        shares = Counter(source for source, _, _ in plans.drawn(step for step in steps if step.window == window))
        assert abs(shares[0] - 9 * shares[1]) <= 10
    every = list(plans.drawn([step for step in plans.first_steps(run, 200) if step.window < 3]))
    every += plans.drawn(steps[len(rest) :])
    assert max(Counter(every).values()) == 1, "each source goes on where it was"
    assert steps[len(rest)].epoch == 1, "a segment begins an epoch of the mixture"
    with pytest.raises(ConfigError, match="weights are given for a; the sources are a, bc"):
        run.with_segment(position, {"a": Fraction(1)})


def test_a_change_at_a_windows_start_holds_at_once_and_a_second_one_takes_its_place() -> None:
    run = make()
    position = next(run.position_of(step) for step in run.steps_from() if step.window == 2)
    plan, start = run.with_segment(position, {"a": Fraction(1), "bc": Fraction(3)})
    assert start.segments[-1].first_window == 2
    _, start = plan.with_segment(start, {"a": Fraction(1), "bc": Fraction(4)})
    assert len(start.segments) == 2
    assert start.segments[-1].changed == (
        "sources.a.weight was 1/2, is 1",
        "sources.bc.weight was 1/2, is 3",
        "sources.bc.weight was 3, is 4",
    )


def test_a_source_that_is_gone_ends_its_window_and_the_others_go_on() -> None:
    run = make()
    position = middle(run)
    plan, start = make(other_sources("removed")).resumed(position, accept_changes=True)
    assert start.segments[-1].dropped == "window 2 from its step 1 on"
    assert (start.window, start.in_window, start.step) == (3, 0, position.step)
    first = next(plan.steps_from(start))
    assert {source for source, _, _ in plans.drawn([first])} == {0}
    assert start.segments[-1].bases["a"] == run.segments[0].positions_of(3)[0]
    with pytest.raises(CheckpointError, match="window 0 cannot be planned any more: its source bc was removed"):
        plan.step(0)


@pytest.mark.parametrize("changed", [{"seed": 2}, {"sources": other_sources("index")}])
def test_what_is_put_in_another_order_begins_its_next_epoch(changed: dict) -> None:
    _, start = make(**changed).resumed(middle(make()), accept_changes=True)
    assert start.segments[-1].bases["bc"] == 250


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}', "3", '{"segments": []}', '{"segments": [{}]}'])
def test_what_is_not_a_position_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="not a plan position"):
        PlanPosition.from_json(text)


@pytest.mark.parametrize("name", ["step", "taken", "window", "in_window", "epoch"])
def test_numbers_of_a_position_must_be_whole(name: str) -> None:
    values = json.loads(make().position_at(0).to_json())
    for wrong in (-1, 1.5, "1", True, None):
        with pytest.raises(CheckpointError, match=f"{name} is .* must be a whole number"):
            PlanPosition.from_json(json.dumps({**values, name: wrong}))
