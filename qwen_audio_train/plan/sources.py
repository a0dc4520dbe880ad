"""One source of a mixture: what the plan knows of a set of samples, and in which order it is drawn.

A source is drawn by *positions*, 0 to its size for its first epoch, on to twice its size for its second, and so on.
Each epoch is a keyed permutation of slices of neighbouring samples, so that a window's reads touch few places,
and so that a hundred million samples are put in order by permuting their slices.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.order import Positions, key, permutation
from qwen_audio_train.samples import Lengths

_SLICES = 1
_PROBES = 64
_EPOCHS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Source:
    """Samples of one kind. Its arrays may be ``np.memmap``: they are read a window at a time and never as a whole."""

    name: str
    """Unique in the mixture; the order depends on it, not on where the source stands in the list."""
    lengths: Lengths
    fingerprint: str = ""
    """Changes when a sample number means another sample, or when a length changes: the caller's promise, for the plan
    does not read all lengths to find out."""
    weight: Fraction | None = None
    """Share of the drawn samples, relative to the other sources' weights. None (for all sources or for none of them):
    by its size, so that each epoch of the mixture is one epoch of each source."""

    def __len__(self) -> int:
        return len(self.lengths)

    def identity(self) -> dict[str, Any]:
        """What the order depends on, for a position's JSON. Reads 64 lengths, whatever the size."""
        return {
            "name": self.name,
            "index": self.fingerprint,
            "samples": len(self),
            "lengths": _probe(self.lengths),
            "weight": "size" if self.weight is None else str(Fraction(self.weight)),
        }


def require_mixture(sources: Sequence[Source]) -> None:
    """Raises ConfigError with everything that keeps these sources from being mixed."""
    if not sources:
        raise ConfigError("there is no source to plan: name at least one set")
    problems = []
    names = [source.name for source in sources]
    problems += [f"two sources are called {name!r}: give each its own name" for name in sorted(_twice(names))]
    for source in sources:
        tokens, frames = len(source.lengths.llm_tokens), len(source.lengths.encoder_frames)
        if tokens == 0:
            problems.append(f"{source.name}: there are no samples: the set, or what was selected of it, is empty")
        if tokens != frames:
            problems.append(f"{source.name}: lengths disagree: {tokens} in llm_tokens, {frames} in encoder_frames")
    _require(problems + _weight_problems(sources))


def _weight_problems(sources: Sequence[Source]) -> list[str]:
    weights = [source.weight for source in sources]
    without = [source.name for source in sources if source.weight is None]
    if len(without) == len(sources):
        return []
    if without:
        return [f"sources without a weight beside others with one: {', '.join(without)}; give all a weight, or none"]
    problems = [
        f"{s.name}: weight is {s.weight}, must be 0 or more" for s in sources if s.weight is not None and s.weight < 0
    ]
    if not any(weights):
        problems.append("all weights are 0: nothing would be drawn")
    return problems


def _require(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(problems)


def _twice(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def whole_weights(identities: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Weights of ``Source.identity`` dictionaries as the smallest whole numbers in the same proportion."""
    if all(identity["weight"] == "size" for identity in identities):
        fractions = [Fraction(identity["samples"]) for identity in identities]
    else:
        fractions = [Fraction(identity["weight"]) for identity in identities]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    common = gcd(*whole)
    return tuple(weight // common for weight in whole)


class SourceOrder:
    """Positions -> sample numbers of one source, under one seed."""

    def __init__(self, name: str, size: int, *, seed: int, slice_samples: int, shuffle: bool) -> None:
        self._size = size
        self._slice_samples = slice_samples
        self._shuffle = shuffle
        self._key = (seed, _SLICES, _name_key(name))
        self._epochs: OrderedDict[int, tuple[Positions, int]] = OrderedDict()

    def samples(self, start: int, stop: int) -> tuple[Positions, Positions]:
        """Sample numbers of positions ``start`` to ``stop``, and the source's epoch of each. Shape (stop - start,)."""
        samples, epochs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while start < stop:
            epoch, first = divmod(start, self._size)
            count = min(stop - start, self._size - first)
            samples.append(self._of_epoch(epoch, first, count))
            epochs.append(np.full(count, epoch, np.int64))
            start += count
        return np.concatenate(samples), np.concatenate(epochs)

    def _of_epoch(self, epoch: int, first: int, count: int) -> Positions:
        places = np.arange(first, first + count, dtype=np.int64)
        if not self._shuffle:
            return places
        slices, short_at = self._slices(epoch)
        # The set's last slice may be a short one: behind it, places are as if it were whole.
        missing = -self._size % self._slice_samples
        places[places >= (short_at + 1) * self._slice_samples - missing] += missing
        return slices[places // self._slice_samples] * self._slice_samples + places % self._slice_samples

    def _slices(self, epoch: int) -> tuple[Positions, int]:
        """The epoch's order of slices, and where in it the set's last slice is."""
        if epoch in self._epochs:
            self._epochs.move_to_end(epoch)
        else:
            count = -(-self._size // self._slice_samples)
            slices = permutation(count, key(*self._key, epoch))
            self._epochs[epoch] = slices, int(np.flatnonzero(slices == count - 1)[0])
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


def _name_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _probe(lengths: Lengths) -> str:
    """Digest of lengths spread evenly over the set: sees another tokenizer at once, whatever the caller promised."""
    count = len(lengths)
    probes = min(count, _PROBES)
    places = np.arange(probes, dtype=np.int64) * (count - 1) // max(1, probes - 1)
    digest = hashlib.sha256()
    for array in (lengths.llm_tokens, lengths.encoder_frames):
        digest.update(np.asarray(array[places]).astype("<i8").tobytes())
    return digest.hexdigest()[:16]
