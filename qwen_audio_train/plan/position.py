"""Where a run stands in its plan: all that a checkpoint needs to keep of the data. A few numbers, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.plan.segments import Segment

_COUNTS = ("step", "taken", "window", "in_window", "epoch")


@dataclass(frozen=True, slots=True)
class PlanPosition:
    """The next step of a plan, and which plan that is."""

    step: int
    """Global index of the next step to run, before ``skip_steps`` are left out."""
    taken: int
    """Steps that were run to get here: ``step`` less those left out."""
    window: int
    """Window of that step, counted over the whole run."""
    in_window: int
    """Number of that step in its window."""
    epoch: int
    """Of the mixture; for people, it follows from ``window``."""
    seed: int
    plan_hash: str
    index_hash: str
    """Of the sources' fingerprints, for people to compare at a glance."""
    segments: tuple[Segment, ...]
    """All the run's, the first included: what was drawn, and what was changed when."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PlanPosition:
        """Raises CheckpointError if ``text`` is not a position."""
        try:
            values = json.loads(text)
            segments = tuple(_segment(entry) for entry in values.pop("segments"))
            position = cls(**values, segments=segments)
            if not segments:
                raise ValueError("segments is empty")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise CheckpointError(f"not a plan position: {error}; expected a JSON object with {names}") from error
        for name in _COUNTS:
            value = getattr(position, name)
            if type(value) is not int or value < 0:
                raise CheckpointError(f"not a plan position: {name} is {value!r}, must be a whole number from 0")
        return position


def _segment(values: dict[str, Any]) -> Segment:
    changed = tuple(values.pop("changed"))
    segment = Segment(**values, changed=changed)
    if type(segment.first_window) is not int or type(segment.first_epoch) is not int:
        raise ValueError("a segment's first_window and first_epoch must be whole numbers")
    for name in ("version", "seed", "budget", "sources"):
        if name not in segment.identity:
            raise ValueError(f"a segment's identity has no {name}")
    return segment


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different between two identities, in words."""
    old, new = _by_name(before["sources"]), _by_name(now["sources"])
    found = [f"source {name} was removed" for name in old if name not in new]
    found += [f"source {name} was added" for name in new if name not in old]
    for name in old:
        if name in new:
            found += _differences(old[name], new[name], f"sources.{name}.")
    return found + _differences({**before, "sources": None}, {**now, "sources": None}, "")


def _by_name(sources: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(source["name"]): source for source in sources}


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
