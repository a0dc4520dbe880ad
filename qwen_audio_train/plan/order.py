"""Keyed permutations that never change: argsort of splitmix64, not the streams of a random-number library.

NumPy may change its generators' streams between versions; these integers are fixed by their definition, so a run can be
resumed, replayed or checked years later.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_MASK_64 = (1 << 64) - 1


def key(*values: int) -> int:
    """One 64-bit key out of integers, such as (seed, epoch, purpose, window)."""
    state = np.zeros(1, np.uint64)
    for value in values:
        state = mixed(state ^ np.uint64(value & _MASK_64))
    return int(state[0])


def mixed(values: Keys) -> Keys:
    """Finaliser of splitmix64, elementwise."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def keys(count: int, of: int) -> Keys:
    """``count`` keys in a row under key ``of``. Shape (count,)."""
    return mixed(np.arange(count, dtype=np.uint64) ^ np.uint64(of))


def permutation(count: int, of: int) -> Positions:
    """A permutation of ``range(count)``."""
    # The keys are all different (the finaliser is one-to-one), so any sort gives the same order, and this is the fastest.
    return np.argsort(keys(count, of))
