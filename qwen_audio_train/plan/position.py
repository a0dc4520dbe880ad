"""Where a run stands in its plan: all that a checkpoint needs to keep of the data. A few numbers, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.plan.steps import Plan


@dataclass(frozen=True, slots=True)
class PlanPosition:
    """The next step of a plan, and which plan that is."""

    step: int
    """Global index of the next step to run."""
    epoch: int
    """Of that step; for people, it follows from ``step``."""
    seed: int
    plan_hash: str
    index_hash: str
    """The plan's fingerprint."""
    identity: dict[str, Any]
    """What the plan depended on (``Plan.identity``), so that a refusal can say what changed."""

    @classmethod
    def at(cls, plan: Plan, step: int) -> PlanPosition:
        """The position before ``step`` is run."""
        epoch = step // plan.steps_in_epoch(0)
        return cls(step, epoch, plan.seed, plan.hash, plan.fingerprint, plan.identity())

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PlanPosition:
        """Raises CheckpointError if ``text`` is not a position."""
        try:
            values = json.loads(text)
            position = cls(**values)
        except (ValueError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise CheckpointError(f"not a plan position: {error}; expected a JSON object with {names}") from error
        if type(position.step) is not int or position.step < 0 or not isinstance(position.identity, dict):
            raise CheckpointError(f"not a plan position: step is {position.step!r}, must be a whole number from 0")
        return position

    def require_same_plan(self, plan: Plan) -> int:
        """The step to go on with in ``plan``. Raises CheckpointError if it is another plan, with what changed."""
        if plan.hash == self.plan_hash:
            return self.step
        changes = _changes(self.identity, plan.identity())
        raise CheckpointError(
            f"the checkpoint stands at step {self.step} of another plan; going on would repeat some samples and leave "
            f"others out. Changed: {'; '.join(changes) or 'the plan hash'}. Restore these, or start a new run from the "
            "checkpoint's weights"
        )


def _changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    changes: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            changes.append(f"{prefix}{name} was {_short(old)}, is {_short(new)}")
    return changes


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
