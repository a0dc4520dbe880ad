"""The plan: which samples make up step k, as a pure function of (seed, sources, weights, budget).

It knows no ranks and no workers. Any world size that divides ``bins_per_step`` runs the same steps, resuming is a
look-up of a position, and what a step holds never depends on how long the run will be.

One window is worked out at a time. What grows with a source is permuting its slices once an epoch, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any, Final

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.draws import Draws
from qwen_audio_train.plan.history import continued
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.segments import Segment
from qwen_audio_train.plan.skips import Skips
from qwen_audio_train.plan.sources import Source, require_mixture
from qwen_audio_train.plan.windows import Bin, PlannedWindow, plan_window

PLAN_VERSION: Final = 2
"""Goes into the hash of a plan: raise it when the same inputs give another order."""
_WINDOWS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of the whole world."""

    index: int
    """Counted over the whole run."""
    epoch: int
    """Of the mixture."""
    window: int
    """Counted over the whole run."""
    in_window: int
    bins: tuple[Bin, ...]
    """``bins_per_step`` bins, of like cost."""


class Plan:
    """Steps over a mixture of sources.

    Args:
        sources: what is mixed. Nothing of their lengths is read here but a few probes.
        seed: of the order.
        budget: limits of bins, and how many make a step.
        skip_steps: inclusive ranges of step indices that ``steps_from`` leaves out; they change no other step.
        segments: a run's history, from a position (``resumed`` and ``with_segment`` set it). None: a new run.

    Raises:
        ConfigError: what keeps the sources from being mixed, or a range of steps that cannot be meant.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        budget: Budget,
        skip_steps: Sequence[Sequence[int]] = (),
        segments: Sequence[Segment] | None = None,
    ) -> None:
        require_mixture(sources)
        self.sources = tuple(sources)
        self.seed = seed
        self.budget = budget
        self.skips = Skips.of(skip_steps)
        self._draws = Draws(self.sources)
        self._identity = {
            "version": PLAN_VERSION,
            "seed": seed,
            "budget": asdict(budget),
            "sources": self._draws.identities,
        }
        self.segments = tuple(segments) if segments else (Segment(0, 0, self._identity),)
        self._windows: OrderedDict[int, PlannedWindow] = OrderedDict()
        self._anchor = 0
        self._first_steps = [0]
        """First step of window ``_anchor`` and of those after it, as far as they were planned."""
        self.windows_planned = 0
        """How often a window was worked out (rather than remembered): for tests and logs."""

    def identity(self) -> dict[str, Any]:
        """What the order depends on now, in words that an error can print."""
        return self._identity

    @cached_property
    def hash(self) -> str:
        """Changes when the order could change: of the identity and of the run's segments."""
        return _digest([self._identity, [asdict(segment) for segment in self.segments]])

    @cached_property
    def index_hash(self) -> str:
        """Of the sources' fingerprints."""
        return _digest([[source.name, source.fingerprint] for source in self.sources])

    def steps_from(self, position: PlanPosition | None = None) -> Iterator[Step]:
        """Steps from a position (None: the run's start) on, without end, a window's work at a time.

        The steps of ``skip_steps`` are left out: the next step's index is higher by as many. ``position`` must be of
        this plan (``resumed`` sees to it).

        Raises:
            ConfigError: a drawn sample does not fit a bin.
            CheckpointError: the position is in a segment whose sources or budget the plan does not have any more.
        """
        window, in_window, first = 0, 0, 0
        if position is not None:
            window, in_window, first = position.window, position.in_window, position.step - position.in_window
        while True:
            self._know(window, first)
            planned = self.window(window)
            for number in range(in_window, len(planned)):
                if first + number not in self.skips:
                    yield self._step(first, window, number)
            window, in_window, first = window + 1, 0, first + len(planned)

    def step(self, index: int) -> Step:
        """Step ``index``, left out or not. Costs one window's work where the windows before it are known (because they
        were planned, or a position said where they begin), and the work of all unknown ones otherwise."""
        if index < 0:
            raise IndexError(f"step {index}: steps count from 0")
        window = self._window_of(index)
        while index >= self.first_step(window) + len(self.window(window)):
            window += 1
        return self._step(self.first_step(window), window, index - self.first_step(window))

    def position_of(self, step: Step) -> PlanPosition:
        """The position before ``step`` is run, every step before it having been run or left out by ``skip_steps``."""
        return self._position(step.index, step.index - self.skips.count(0, step.index), step.window, step.in_window)

    def position_at(self, index: int, taken: int | None = None) -> PlanPosition:
        """The same for a step's index. ``taken`` is counted where it is not given, as if the same steps had been left
        out all along. Costs as ``step``, and nothing for a step that was planned, or the one after it."""
        window = self._window_of(index)
        while index > self.first_step(window) and index >= self.first_step(window + 1):
            window += 1
        taken = index - self.skips.count(0, index) if taken is None else taken
        return self._position(index, taken, window, index - self.first_step(window))

    def first_step(self, window: int) -> int:
        """Global index of a window's first step. Plans the windows before it that are not known."""
        if window < self._anchor:
            self._know(0, 0)
        while window - self._anchor >= len(self._first_steps):
            last = self._anchor + len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[-1] + len(self.window(last)))
        return self._first_steps[window - self._anchor]

    def epoch_at(self, index: int) -> float:
        """Epochs of the mixture that are behind a step's start: 1.25 is a quarter into the second."""
        position = self.position_at(index, 0)
        segment = self.segment_of(position.window)
        epoch, within = segment.epoch_of(position.window)
        if position.in_window == 0:
            return epoch + within / segment.epoch_windows
        steps = self.first_step(position.window + 1) - self.first_step(position.window)
        return epoch + (within + position.in_window / steps) / segment.epoch_windows

    def window(self, number: int) -> PlannedWindow:
        """A window's steps: worked out, or remembered from a moment ago."""
        if number in self._windows:
            self._windows.move_to_end(number)
        else:
            segment = self.segment_of(number)
            drawn = self._draws.window(segment, number)
            self._windows[number] = plan_window(drawn, segment.budget, seed=segment.seed, window=number)
            self.windows_planned += 1
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[number]

    def steps_in_epoch(self, epoch: int, progress: Callable[[int, int], None] | None = None) -> int:
        """Steps of one epoch of the mixture, the same for every rank. Plans its windows, and those before it, once
        (3 s a million samples): keep the number.

        Args:
            progress: called with (windows of the epoch that are planned, windows of the epoch) after each.
        """
        windows = self.windows_of(epoch)
        first = self.first_step(windows.start)
        for window in windows:
            self.first_step(window + 1)
            if progress is not None:
                progress(window + 1 - windows.start, len(windows))
        return self.first_step(windows.stop) - first

    def count_steps(self, epochs: float, progress: Callable[[int, int], None] | None = None) -> int:
        """Steps of so many epochs of the mixture from the run's start, a part of one rounded up. Counts steps that
        ``skip_steps`` leaves out too. Costs as ``steps_in_epoch``, for each epoch."""
        whole, part = int(epochs), epochs % 1
        steps = sum(self.steps_in_epoch(epoch, progress) for epoch in range(whole))
        return steps + (ceil(self.steps_in_epoch(whole, progress) * part) if part else 0)

    def windows_of(self, epoch: int) -> range:
        """Windows of an epoch of the mixture."""
        return range(self._epoch_start(epoch), self._epoch_start(epoch + 1))

    def segment_of(self, window: int) -> Segment:
        """The segment that rules over a window."""
        return next(segment for segment in reversed(self.segments) if segment.first_window <= window)

    def with_segment(self, position: PlanPosition, weights: Mapping[str, Fraction | None]) -> tuple[Plan, PlanPosition]:
        """The plan with other weights from the next window's start on, and the position in it.

        Args:
            position: where the run stands.
            weights: of every source, by name.

        Raises:
            ConfigError: a source without a weight, a weight without a source, or weights that cannot be meant.
        """
        names = {source.name for source in self.sources}
        if names != weights.keys():
            raise ConfigError(
                f"weights are given for {', '.join(sorted(weights))}; the sources are {', '.join(sorted(names))}"
            )
        sources = [replace(source, weight=weights[source.name]) for source in self.sources]
        other = Plan(sources, seed=self.seed, budget=self.budget, skip_steps=self.skips.ranges)
        return other.resumed(position, accept_changes=True)

    def resumed(self, position: PlanPosition, *, accept_changes: bool = False) -> tuple[Plan, PlanPosition]:
        """This plan with the history of a run, and where to go on in it.

        Where seed, budget, sources or weights are not those of the run and ``accept_changes`` is set, they hold from
        the next window's start on (``history.continued`` says what becomes of the window that is under way).

        Raises:
            CheckpointError: they changed and that is not accepted: everything that changed is named.
        """
        position = continued(position, self._identity, accept_changes=accept_changes)
        plan = Plan(
            self.sources, seed=self.seed, budget=self.budget, skip_steps=self.skips.ranges, segments=position.segments
        )
        return plan, replace(position, seed=self.seed, plan_hash=plan.hash, index_hash=plan.index_hash)

    def _position(self, index: int, taken: int, window: int, in_window: int) -> PlanPosition:
        epoch, _ = self.segment_of(window).epoch_of(window)
        return PlanPosition(
            index, taken, window, in_window, epoch, self.seed, self.hash, self.index_hash, self.segments
        )

    def _step(self, first: int, window: int, number: int) -> Step:
        epoch, _ = self.segment_of(window).epoch_of(window)
        return Step(first + number, epoch, window, number, self.window(window).bins(number))

    def _know(self, window: int, first_step: int) -> None:
        """Remember where a window begins: beside the others, or, if it does not follow them, in their place."""
        behind = self._anchor + len(self._first_steps)
        if window == behind:
            self._first_steps.append(first_step)
        elif not self._anchor <= window < behind:
            self._anchor, self._first_steps = window, [first_step]

    def _window_of(self, index: int) -> int:
        """The last known window that begins at the index or before it."""
        if index < self._first_steps[0]:
            self._know(0, 0)
        return self._anchor + bisect_right(self._first_steps, index) - 1

    def _epoch_start(self, epoch: int) -> int:
        for segment, following in pairwise(self.segments):
            window = segment.epoch_window(epoch)
            if window < following.first_window:
                return window
        return max(self.segments[-1].first_window, self.segments[-1].epoch_window(epoch))


def rank_bins(step: Step, rank: int, world: int) -> tuple[Bin, ...]:
    """The bins that ``rank`` of ``world`` runs, in order: equally many for every rank.

    Raises:
        ConfigError: the world size does not divide the step's bins; the legal sizes are listed.
    """
    if world < 1 or len(step.bins) % world:
        legal = [size for size in range(1, len(step.bins) + 1) if len(step.bins) % size == 0]
        raise ConfigError(
            f"a step of {len(step.bins)} bins cannot be shared equally by {world} ranks; legal world sizes: "
            f"{', '.join(map(str, legal))} (or change bins_per_step, which changes the steps)"
        )
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is not in a world of {world}")
    return step.bins[rank::world]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
