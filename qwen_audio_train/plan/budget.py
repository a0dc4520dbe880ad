"""How much goes into a bin and into a step, and every reason why a set of samples cannot be planned with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.plan.order import Positions
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.samples import IntArray, Lengths

Layout = Literal["padded", "packed"]
LAYOUTS: Final = get_args(Layout)
_LEAST: Final = {"llm_tokens": 1, "encoder_frames": 0}
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one bin (what one rank runs at once) and the shape of a step.

    Raises:
        ConfigError: on construction, with every wrong value.
    """

    llm_tokens: int
    """Language-model tokens of a bin; in the padded layout, padding included."""
    encoder_frames: int
    """20 ms encoder frames of a bin; in the padded layout, padding included."""
    bins_per_step: int
    """Bins of a global step. Every world size that divides it trains on the same steps."""
    window_samples: int
    """Samples that are drawn and binned together, about: an epoch is cut into near-equal windows. Smaller windows let
    the mixture's weights hold over shorter stretches, larger ones shuffle more widely and leave less padding."""
    layout: Layout = "padded"
    """``padded``: one sample a row, all rows as long as the longest. ``packed``: samples one after another."""
    shuffle: bool = True
    slice_samples: int = 64
    """Neighbouring samples of a source that are drawn together, so that reads touch few places. As many as a shard
    holds draws whole shards."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be at least 1"
            for name, value in (
                ("llm_tokens", self.llm_tokens),
                ("encoder_frames", self.encoder_frames),
                ("bins_per_step", self.bins_per_step),
                ("slice_samples", self.slice_samples),
            )
            if value < 1
        ]
        if self.window_samples < max(1, self.bins_per_step):
            problems.append(
                f"window_samples is {self.window_samples}, must be at least bins_per_step ({self.bins_per_step}): "
                "a smaller window could not fill one step"
            )
        if self.layout not in LAYOUTS:
            problems.append(f"layout is {self.layout!r}, known: {', '.join(LAYOUTS)}")
        if problems:
            raise ConfigError(problems)

    def legal_worlds(self) -> tuple[int, ...]:
        """World sizes that get equally many bins of each step."""
        return tuple(world for world in range(1, self.bins_per_step + 1) if self.bins_per_step % world == 0)


def require_plannable(sources: Sequence[Source], budget: Budget) -> None:
    """Every sample must fit a bin by itself. Reads all lengths, a part at a time, which a plan itself never does.

    Raises:
        ConfigError: for each source, how many samples do not fit, the first and the largest.
    """
    problems = []
    for source in sources:
        for name, sizes, limit in _limited(source.lengths, budget):
            problems += _problems(source.name, name, sizes, limit)
    if problems:
        raise ConfigError(problems)


def require_fits(source: Source, samples: Positions, budget: Budget) -> None:
    """The same for the samples of one window only. Raises ConfigError that names the first that does not fit."""
    for name, sizes, limit in _limited(source.lengths, budget):
        drawn = sizes[samples]
        wrong = np.flatnonzero((drawn > limit) | (drawn < _LEAST[name]))
        if len(wrong):
            raise ConfigError(
                f"{source.name}: sample {samples[wrong[0]]} has {drawn[wrong[0]]} {name}, must be {_LEAST[name]} to "
                f"{limit} (the bin budget); raise {name} or leave it out"
            )


def _limited(lengths: Lengths, budget: Budget) -> tuple[tuple[str, IntArray, int], ...]:
    return (
        ("llm_tokens", lengths.llm_tokens, budget.llm_tokens),
        ("encoder_frames", lengths.encoder_frames, budget.encoder_frames),
    )


def _problems(source: str, name: str, sizes: IntArray, limit: int) -> list[str]:
    over = under = largest = 0
    first_over = first_under = -1
    for start in range(0, len(sizes), _READ_AT_ONCE):
        part = np.asarray(sizes[start : start + _READ_AT_ONCE])
        largest = max(largest, int(part.max()))
        too_large, too_small = np.flatnonzero(part > limit), np.flatnonzero(part < _LEAST[name])
        if len(too_large) and not over:
            first_over = start + int(too_large[0])
        if len(too_small) and not under:
            first_under = start + int(too_small[0])
        over += len(too_large)
        under += len(too_small)
    problems = []
    if over:
        problems.append(
            f"{source}: {over} of {len(sizes)} samples exceed the bin budget of {limit} {name}: the first is sample "
            f"{first_over} with {sizes[first_over]}, the largest has {largest}; raise {name} or leave them out"
        )
    if under:
        problems.append(
            f"{source}: {under} of {len(sizes)} samples have fewer than {_LEAST[name]} {name}: the first is sample "
            f"{first_under} with {sizes[first_under]}; leave them out"
        )
    return problems
