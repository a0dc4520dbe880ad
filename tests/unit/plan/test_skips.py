from __future__ import annotations

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.skips import Skips
from qwen_audio_train.plan.steps import Plan
from tests import plans


def test_left_out_steps_keep_their_numbers_and_so_do_the_others() -> None:
    whole = Plan(plans.sources({"a": 600}), seed=1, budget=plans.budget(window_samples=100))
    gaps = Plan(whole.sources, seed=1, budget=whole.budget, skip_steps=[[7, 9], [0, 0], [2, 2]])
    steps = plans.first_steps(whole, 14)
    rest = [step for step in steps if step.index not in (0, 2, 7, 8, 9)]
    assert plans.digest(plans.first_steps(gaps, len(rest))) == plans.digest(rest)
    assert plans.digest([gaps.step(8)]) == plans.digest([steps[8]])
    assert gaps.hash == whole.hash, "a run may begin to leave steps out where it stands"
    position = gaps.position_of(rest[-1])
    assert (position.step, position.taken) == (rest[-1].index, len(rest) - 1)


def test_counting_and_finding_the_place_behind_steps_that_were_run() -> None:
    skips = Skips.of([[2, 3], [5, 5]])
    run = [index for index in range(30) if index not in skips]
    for start in range(8):
        mine = [index for index in run if index >= start]
        assert skips.after(start, 0) == start
        for taken in range(1, 9):
            assert skips.after(start, taken) == mine[taken - 1] + 1
        assert skips.count(start, 12) == sum(index in skips for index in range(start, 12))


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([[3, 2]], r"\[3, 2\] must be \[first, last\] with 0 <= first <= last"),
        ([[-1, 2]], r"\[-1, 2\] must be"),
        ([[1]], r"\[1\] must be two whole numbers"),
        ([[1, 2.0]], "must be two whole numbers"),
        ([[True, 2]], "must be two whole numbers"),
        ([[4, 6], [1, 4]], r"\[1, 4\] and \[4, 6\] overlap"),
    ],
)
def test_ranges_that_cannot_be_meant_are_refused(ranges: list, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Skips.of(ranges)
