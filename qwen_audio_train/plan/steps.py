"""The plan: which samples make up step k, as a pure function of (seed, epoch, lengths, budget).

It knows no ranks, no workers and no history. Any world size that divides ``bins_per_step`` runs the same steps,
resuming at a step is a look-up, and the number of steps is known before a run starts.

One window of one epoch is worked out at a time. The one thing that grows with the data set is dealing an epoch's
samples to its windows: one argsort of all sample numbers (10 ms at 100,000 samples), kept for the epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.bins import bin_cost, build_bins
from qwen_audio_train.plan.budget import Budget, require_plannable
from qwen_audio_train.plan.order import Positions, key, keys, permutation
from qwen_audio_train.plan.strata import build_strata
from qwen_audio_train.samples import IntArray, Lengths

PLAN_VERSION: Final = 1
"""Goes into the hash of a plan: raise it when the same inputs give another order."""
_DEAL, _BINS, _STEPS, _RANKS = range(1, 5)
_COST_LEVELS = 16
_WINDOWS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of the whole world."""

    index: int
    """Counted over all epochs."""
    epoch: int
    bins: tuple[IntArray, ...]
    """``bins_per_step`` arrays of sample numbers, of like cost. A bin is empty only where a window has fewer
    samples than its bins need: the batch builder makes a batch of it that adds nothing to the loss."""


class Plan:
    """Steps over one source of samples.

    Args:
        lengths: sizes of every sample.
        seed: of the order.
        budget: limits of bins, and how many make a step.
        fingerprint: of what the sample numbers mean (for instance the index's hash); goes into ``hash``.

    Raises:
        ConfigError: no samples, or samples that exceed the budget by themselves; all are counted.
    """

    def __init__(self, lengths: Lengths, *, seed: int, budget: Budget, fingerprint: str = "") -> None:
        require_plannable(lengths, budget)
        self.lengths = lengths
        self.seed = seed
        self.budget = budget
        self.fingerprint = fingerprint
        self.lengths_hash = _hash_lengths(lengths)
        self._strata = build_strata(lengths, budget)
        tokens, frames = self._strata.slot_tokens, self._strata.slot_frames
        bins = build_bins(tokens, frames, budget, self._strata.ragged_slot)
        self._slots = np.concatenate([np.asarray(slots, dtype=np.int64) for slots in bins])
        self._bin_ends = np.cumsum([len(slots) for slots in bins])
        costs = np.array([bin_cost(slots, tokens, frames, budget) for slots in bins])
        self._cost_levels = np.round(costs * _COST_LEVELS).astype(np.int64)
        self.steps_per_window = len(bins) // budget.bins_per_step
        self.num_windows = self._strata.num_windows
        self._dealt: tuple[int, Positions] | None = None
        self._windows: OrderedDict[tuple[int, int], list[tuple[IntArray, ...]]] = OrderedDict()
        self.windows_planned = 0
        """How often a window was worked out (rather than remembered): for tests and logs."""

    @property
    def hash(self) -> str:
        """Changes when the order could change: of seed, budget, lengths and fingerprint."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What the order depends on, in words that an error can print."""
        return {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "budget": asdict(self.budget),
            "lengths": self.lengths_hash,
            "index": self.fingerprint,
        }

    def steps_in_epoch(self, epoch: int) -> int:
        """Steps of one epoch, the same for every rank. With one source, also the same for every epoch."""
        assert epoch >= 0
        return self.num_windows * self.steps_per_window

    def first_step(self, epoch: int) -> int:
        """Global index of an epoch's first step."""
        return epoch * self.steps_in_epoch(0)

    def step(self, index: int) -> Step:
        """Step ``index``, counted over all epochs from 0. Any index costs at most one window's work."""
        if index < 0:
            raise IndexError(f"step {index}: steps count from 0")
        epoch, in_epoch = divmod(index, self.steps_in_epoch(0))
        window, in_window = divmod(in_epoch, self.steps_per_window)
        return Step(index=index, epoch=epoch, bins=self._window(epoch, window)[in_window])

    def _window(self, epoch: int, window: int) -> list[tuple[IntArray, ...]]:
        if (epoch, window) in self._windows:
            self._windows.move_to_end((epoch, window))
        else:
            self._windows[epoch, window] = self._planned_window(epoch, window)
            if len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]

    def _planned_window(self, epoch: int, window: int) -> list[tuple[IntArray, ...]]:
        self.windows_planned += 1
        positions = self._strata.positions[self._slots, window]
        samples = np.where(positions >= 0, self._dealt_order(epoch)[positions], -1).astype(np.int32)
        bins = np.split(samples, self._bin_ends[:-1])
        return [
            tuple(bins[index] if bins[index].min(initial=0) >= 0 else bins[index][bins[index] >= 0] for index in row)
            for row in self._rows(epoch, window).tolist()
        ]

    def _rows(self, epoch: int, window: int) -> Positions:
        """Bin numbers of each step: shape (steps_per_window, bins_per_step), bins of like cost in a row."""
        count, per_step = len(self._cost_levels), self.budget.bins_per_step
        if not self.budget.shuffle:
            return np.argsort(-self._cost_levels, kind="stable").reshape(-1, per_step)
        drawn = keys(count, key(self.seed, epoch, _BINS, window))
        rows = np.lexsort((drawn, self._cost_levels)).reshape(-1, per_step)
        rows = rows[permutation(len(rows), key(self.seed, epoch, _STEPS, window))]
        # Within a step too, or the last rank would always get the most expensive bin.
        places = keys(count, key(self.seed, epoch, _RANKS, window)).reshape(rows.shape)
        return np.take_along_axis(rows, np.argsort(places, axis=1, kind="stable"), axis=1)

    def _dealt_order(self, epoch: int) -> Positions:
        if self._dealt is None or self._dealt[0] != epoch:
            shuffle_key = key(self.seed, epoch, _DEAL) if self.budget.shuffle else None
            self._dealt = (epoch, self._strata.dealt(shuffle_key))
        return self._dealt[1]


def rank_bins(step: Step, rank: int, world: int) -> tuple[IntArray, ...]:
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


def _hash_lengths(lengths: Lengths) -> str:
    digest = hashlib.sha256()
    for array in (lengths.llm_tokens, lengths.encoder_frames):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
