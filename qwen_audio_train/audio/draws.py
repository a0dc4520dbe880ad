"""Draws that are the same for ever: splitmix64 in integers, keyed by what is drawn for.

NumPy may change its generators' streams between versions; these words are fixed by their definition.
"""

from __future__ import annotations

from enum import IntEnum

_MASK_64 = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """Each augmentation draws under a key of its own, so that switching one on leaves the others' draws alone.

    The numbers are part of every result: never reuse or renumber them.
    """

    speed = 1
    noise = 2
    telephone = 3
    gain = 4
    spec_augment = 5


def augmentation_key(seed: int, epoch: int, sample: int, clip: int = 0) -> int:
    """The 64-bit key of one clip of one sample in one epoch."""
    state = 0
    for value in (seed, epoch, sample, clip):
        state = _mixed((state ^ value) + _STEP)
    return state


class Draws:
    """The words drawn for one purpose under one key, in order."""

    def __init__(self, key: int, purpose: Purpose) -> None:
        self._state = _mixed(_mixed(key + _STEP) ^ purpose)

    def word(self) -> int:
        """The next 64 bits."""
        self._state = (self._state + _STEP) & _MASK_64
        return _mixed(self._state)

    def unit(self) -> float:
        """In [0, 1), of 53 bits."""
        return (self.word() >> 11) * 2.0**-53

    def between(self, lowest: float, highest: float) -> float:
        """Evenly between the two."""
        return lowest + (highest - lowest) * self.unit()

    def below(self, count: int) -> int:
        """In ``range(count)``, all alike likely (to 1 in 2**40 for every count that occurs)."""
        return (self.word() * count) >> 64


def _mixed(value: int) -> int:
    """Finaliser of splitmix64."""
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
