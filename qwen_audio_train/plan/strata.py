"""Windows that are alike: every window gets one share of every stratum of like-sized samples.

Samples are sorted by size and cut into strata; each epoch deals the members of a stratum at random to the windows. So
all windows of all epochs have, slot by slot, samples no larger than the stratum's largest, and **one binning of the
slots is valid for every window of every epoch**. That makes the number of steps known before a run starts and a step's
content a look-up. The price: a slot counts as its stratum's largest sample, about 1 % of a bin's budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np

from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.order import Positions, permutation_within
from qwen_audio_train.samples import Lengths

_STRATA_AT_LEAST = 64
_STRATUM_SAMPLES = (4, 32)
"""Fewest and most samples of a stratum, before rounding up to a multiple of the windows."""


@dataclass(frozen=True, slots=True)
class Strata:
    """Samples by size, and how they are dealt."""

    by_size: Positions
    """Shape (num_samples,): sample numbers, like sizes side by side, the smallest first."""
    stratum_of: Positions
    """Shape (num_samples,): stratum of each position of ``by_size``, ascending. The first may be a smaller one."""
    num_windows: int
    slot_tokens: Positions
    """Shape (num_slots,): most tokens that a sample in the slot can have, in any window and epoch."""
    slot_frames: Positions
    positions: Positions
    """Shape (num_slots, num_windows): position in the dealt order; -1 where a window has no sample in the slot.
    Only one slot, of the smallest samples, can be without a sample in some windows."""

    @property
    def ragged_slot(self) -> int | None:
        """The slot that some windows have no sample for."""
        ragged = np.flatnonzero((self.positions < 0).any(axis=1))
        return int(ragged[0]) if len(ragged) else None

    def dealt(self, shuffle_key: int | None) -> Positions:
        """Sample numbers in one epoch's dealt order. Shape (num_samples,)."""
        if shuffle_key is None:
            return self.by_size
        return self.by_size[permutation_within(self.stratum_of, shuffle_key)]


def build_strata(lengths: Lengths, budget: Budget) -> Strata:
    """Cut the samples into strata whose members, one each, make up every window."""
    num_samples = len(lengths)
    num_windows = max(1, num_samples // budget.window_samples)
    by_size = _sorted_by_size(lengths, budget, num_windows)
    least, most = _STRATUM_SAMPLES
    wanted = min(most, max(least, num_samples // _STRATA_AT_LEAST))
    stratum_samples = num_windows * ceil(wanted / num_windows)
    # What does not fill a stratum is of the smallest samples, where an empty slot costs least.
    first_samples = num_samples % stratum_samples
    index = np.arange(num_samples, dtype=np.int64)
    stratum_of = (index - first_samples + stratum_samples) // stratum_samples
    stratum_of -= stratum_of[0]
    starts = np.flatnonzero(np.diff(stratum_of, prepend=-1))
    slots_of_stratum = -(-np.diff(np.append(starts, num_samples)) // num_windows)
    return Strata(
        by_size=by_size,
        stratum_of=stratum_of,
        num_windows=num_windows,
        slot_tokens=np.repeat(np.maximum.reduceat(lengths.llm_tokens[by_size], starts), slots_of_stratum).astype(int),
        slot_frames=np.repeat(np.maximum.reduceat(lengths.encoder_frames[by_size], starts), slots_of_stratum).astype(
            int
        ),
        positions=_positions(num_samples, first_samples, num_windows),
    )


def _positions(num_samples: int, first_samples: int, num_windows: int) -> Positions:
    filled = np.arange(first_samples, num_samples, dtype=np.int64)
    ragged = np.full(num_windows * ceil(first_samples / num_windows), -1, dtype=np.int64)
    ragged[:first_samples] = np.arange(first_samples)
    return np.concatenate([ragged, filled]).reshape(-1, num_windows)


def _sorted_by_size(lengths: Lengths, budget: Budget, num_windows: int) -> Positions:
    """Neighbours are alike in frames and in tokens: bands of frames, each sorted by tokens, to and fro."""
    tokens = lengths.llm_tokens.astype(np.int64)
    frames = lengths.encoder_frames.astype(np.int64)
    num_samples = len(tokens)
    bins = max(int(tokens.sum()) // budget.llm_tokens, int(frames.sum()) // budget.encoder_frames) // num_windows
    num_bands = max(1, isqrt(bins))
    by_frames = np.lexsort((tokens, frames))
    band = np.empty(num_samples, dtype=np.int64)
    band[by_frames] = np.arange(num_samples, dtype=np.int64) * num_bands // num_samples
    to_and_fro = np.where(band % 2 == 0, tokens, -tokens)
    return np.lexsort((frames, to_and_fro, band))
