from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.samples import Lengths

BUDGET = Budget(llm_tokens=100, encoder_frames=100, bins_per_step=2, window_samples=8)


def _plan(seed: int = 1, budget: Budget = BUDGET, longest: int = 20, fingerprint: str = "abc") -> Plan:
    sizes = np.array([10] * 30 + [longest], np.int32)
    return Plan(Lengths(sizes, sizes, sizes), seed=seed, budget=budget, fingerprint=fingerprint)


def test_round_trip_through_json() -> None:
    plan = _plan()
    position = PlanPosition.at(plan, plan.steps_in_epoch(0) + 1)
    restored = PlanPosition.from_json(position.to_json())
    assert restored == position
    assert restored.epoch == 1
    assert restored.require_same_plan(_plan()) == plan.steps_in_epoch(0) + 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: _plan(seed=2), "seed was 1, is 2"),
        (lambda: _plan(budget=replace(BUDGET, llm_tokens=99)), "budget.llm_tokens was 100, is 99"),
        (lambda: _plan(budget=replace(BUDGET, layout="packed")), "budget.layout was padded, is packed"),
        (lambda: _plan(longest=21), "lengths was "),
        (lambda: _plan(fingerprint="abd"), "index was abc, is abd"),
    ],
)
def test_another_plan_is_refused_with_what_changed(other, says: str) -> None:
    position = PlanPosition.at(_plan(), 3)
    with pytest.raises(CheckpointError) as caught:
        position.require_same_plan(other())
    assert f"Changed: {says}" in str(caught.value)
    assert "step 3" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}', "3"])
def test_what_is_not_a_position_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="not a plan position"):
        PlanPosition.from_json(text)
