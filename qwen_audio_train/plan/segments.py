"""The stretches of a run between changes of its mixture, and how much of each source a window draws.

Within a segment, mixture time ``t`` counts samples. An epoch of the mixture is as many samples as its sources hold,
cut into near-equal windows; by time ``t`` a source of weight ``w`` has given ``floor(t * w / sum of weights)`` samples.
That is whole-number arithmetic: every window holds its exact share of every source to one sample, however long a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.sources import whole_weights


@dataclass(frozen=True)
class Segment:
    """One stretch, from its first window to the next segment's. Kept in a position's JSON as it is."""

    first_window: int
    """Windows count over the whole run."""
    first_epoch: int
    """Of the mixture: a segment starts a new one, unless the one before just ended one."""
    identity: dict[str, Any]
    """What the order depends on in this segment: seed, budget, and each source's name, index, samples and weight."""
    bases: dict[str, int] = field(default_factory=dict)
    """Position at which each source goes on; 0 where none is given."""
    changed: tuple[str, ...] = ()
    """What is different from the segment before; empty in a run's first."""
    dropped: str = ""
    """What of the segment before could not be run any more, in words."""

    @cached_property
    def budget(self) -> Budget:
        """Of this segment's bins and steps."""
        return Budget(**self.identity["budget"])

    @property
    def seed(self) -> int:
        """Of this segment's order."""
        return int(self.identity["seed"])

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Of each source, as whole numbers."""
        return whole_weights(self.identity["sources"])

    @cached_property
    def epoch_samples(self) -> int:
        """Samples of one epoch of the mixture: what the sources of a weight above 0 hold."""
        pairs = zip(self.identity["sources"], self.weights, strict=True)
        return sum(int(source["samples"]) for source, weight in pairs if weight)

    @cached_property
    def epoch_windows(self) -> int:
        """Windows of one epoch of the mixture."""
        return max(1, round(self.epoch_samples / self.budget.window_samples))

    def epoch_of(self, window: int) -> tuple[int, int]:
        """Epoch of the mixture, and number of the window within it."""
        epoch, within = divmod(window - self.first_window, self.epoch_windows)
        return self.first_epoch + epoch, within

    def time_of(self, window: int) -> int:
        """Samples of the mixture drawn in this segment before the window."""
        epochs, within = divmod(window - self.first_window, self.epoch_windows)
        return epochs * self.epoch_samples + within * self.epoch_samples // self.epoch_windows

    def positions_of(self, window: int) -> tuple[int, ...]:
        """Position of each source at the window's start."""
        time, total = self.time_of(window), sum(self.weights)
        return tuple(
            int(self.bases.get(source["name"], 0)) + time * weight // total
            for source, weight in zip(self.identity["sources"], self.weights, strict=True)
        )

    def epoch_window(self, epoch: int) -> int:
        """First window of an epoch of the mixture in this segment."""
        return self.first_window + (epoch - self.first_epoch) * self.epoch_windows
