"""Steps that a run leaves out: a stretch of bad data, or one that a run diverged on.

A left-out step keeps its number, and so does every other step: what step k holds never depends on what is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qwen_audio_train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Skips:
    """Inclusive ranges of step indices, ascending, apart from each other."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Sequence[Sequence[int]]) -> Skips:
        """From ``[[first, last], ...]`` in any order. Raises ConfigError with every range that cannot be meant."""
        problems, good = [], []
        for entry in ranges:
            pair = tuple(entry)
            if len(pair) != 2 or any(type(value) is not int for value in pair):
                problems.append(f"skip_steps: {list(entry)} must be two whole numbers, [first, last]")
            elif not 0 <= pair[0] <= pair[1]:
                problems.append(f"skip_steps: {list(entry)} must be [first, last] with 0 <= first <= last")
            else:
                good.append((pair[0], pair[1]))
        good.sort()
        problems += [
            f"skip_steps: {list(one)} and {list(two)} overlap: join them"
            for one, two in pairwise(good)
            if two[0] <= one[1]
        ]
        if problems:
            raise ConfigError(problems)
        return cls(tuple(good))

    def __contains__(self, step: int) -> bool:
        return any(first <= step <= last for first, last in self.ranges)

    def count(self, start: int, stop: int) -> int:
        """How many of the steps from ``start`` up to, without, ``stop`` are left out."""
        return sum(max(0, min(stop, last + 1) - max(start, first)) for first, last in self.ranges)

    def after(self, start: int, taken: int) -> int:
        """Index behind the last of ``taken`` steps that are run from ``start`` on; ``start`` if none is."""
        if taken == 0:
            return start
        index = start + taken
        for first, last in self.ranges:
            if last >= start and max(first, start) < index:
                index += last + 1 - max(first, start)
        return index
