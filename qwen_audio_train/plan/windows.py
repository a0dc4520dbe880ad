"""One window of a mixture: what it draws, its bins, and the order of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwen_audio_train.plan.bins import bin_costs, pack
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.order import Positions, key, keys, permutation
from qwen_audio_train.samples import IntArray

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEVELS, _STEPS, _PLACES = range(2, 5)
_COST_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Bin:
    """What one rank runs at once. Three arrays of shape (num_samples,); empty only where a window has fewer samples
    than a step has bins: the batch builder makes a batch of it that adds nothing to the loss."""

    sources: IntArray
    """Number of the source in the plan's list."""
    samples: npt.NDArray[np.int64]
    """Number of the sample within its source."""
    epochs: IntArray
    """The source's own epoch."""

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A window's samples. Arrays of shape (num_samples,)."""

    sources: IntArray
    samples: Positions
    epochs: IntArray
    tokens: Positions
    frames: Positions


@dataclass(frozen=True, slots=True)
class PlannedWindow:
    """A window's steps."""

    drawn: Drawn
    """In the order of steps, bins and places."""
    ends: Positions
    """Shape (num_steps * bins_per_step + 1,): where each bin ends in ``drawn``, after a 0."""
    bins_per_step: int

    def __len__(self) -> int:
        return (len(self.ends) - 1) // self.bins_per_step

    def bins(self, step: int) -> tuple[Bin, ...]:
        """The bins of a step of this window. Views, not copies."""
        first = step * self.bins_per_step
        bounds: Sequence[int] = self.ends[first : first + self.bins_per_step + 1].tolist()
        drawn = self.drawn
        return tuple(
            Bin(drawn.sources[start:stop], drawn.samples[start:stop], drawn.epochs[start:stop])
            for start, stop in pairwise(bounds)
        )


def plan_window(drawn: Drawn, budget: Budget, *, seed: int, window: int) -> PlannedWindow:
    """Bins under both budgets, bins of like cost side by side in a step, steps in shuffled order."""
    bin_of, num_bins = pack(drawn.tokens, drawn.frames, budget)
    place_of_bin = np.empty(num_bins, np.int64)
    place_of_bin[_rows(_costs(bin_of, num_bins, drawn, budget), budget, seed, window).ravel()] = np.arange(num_bins)
    places = place_of_bin[bin_of]
    order = np.argsort(places, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=num_bins))])
    ordered = Drawn(
        drawn.sources[order], drawn.samples[order], drawn.epochs[order], drawn.tokens[order], drawn.frames[order]
    )
    return PlannedWindow(ordered, ends, budget.bins_per_step)


def _rows(costs: Positions, budget: Budget, seed: int, window: int) -> Positions:
    """Bin numbers of each step: shape (num_steps, bins_per_step), bins of like cost in a row."""
    per_step = budget.bins_per_step
    if not budget.shuffle:
        return np.argsort(-costs, kind="stable").reshape(-1, per_step)
    drawn = keys(len(costs), key(seed, _LEVELS, window))
    rows = np.lexsort((drawn, costs)).reshape(-1, per_step)
    rows = rows[permutation(len(rows), key(seed, _STEPS, window))]
    # Within a step too, or the last rank would always get the most expensive bin.
    places = keys(len(costs), key(seed, _PLACES, window)).reshape(rows.shape)
    return np.take_along_axis(rows, np.argsort(places, axis=1, kind="stable"), axis=1)


def _costs(bin_of: Positions, num_bins: int, drawn: Drawn, budget: Budget) -> Positions:
    """Share of the token budget plus share of the frame budget, in levels: whole numbers, so that they are the same
    on every machine."""
    cost = bin_costs(bin_of, num_bins, drawn.tokens, drawn.frames, budget)
    return cost * _COST_LEVELS // (budget.llm_tokens * budget.encoder_frames)
