"""How much goes into a bin and into a step, and every reason why a set of samples cannot be planned with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.samples import Lengths

Layout = Literal["padded", "packed"]
LAYOUTS: Final = get_args(Layout)


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
    """Samples that are binned together: each window holds this many or more, but less than twice as many. Smaller
    windows mix a bin's samples anew in each epoch more freely, larger ones leave less padding."""
    layout: Layout = "padded"
    """``padded``: one sample a row, all rows as long as the longest. ``packed``: samples one after another."""
    shuffle: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be at least 1"
            for name, value in (
                ("llm_tokens", self.llm_tokens),
                ("encoder_frames", self.encoder_frames),
                ("bins_per_step", self.bins_per_step),
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


def require_plannable(lengths: Lengths, budget: Budget) -> None:
    """Every sample must fit a bin by itself. Raises ConfigError that counts those that do not and names the first."""
    tokens, frames = np.asarray(lengths.llm_tokens), np.asarray(lengths.encoder_frames)
    if len(tokens) == 0:
        raise ConfigError("there are no samples to plan: the data set, or what was selected of it, is empty")
    if len(tokens) != len(frames):
        raise ConfigError(f"lengths disagree: {len(tokens)} samples in llm_tokens, {len(frames)} in encoder_frames")
    problems = []
    for name, sizes, limit in (
        ("llm_tokens", tokens, budget.llm_tokens),
        ("encoder_frames", frames, budget.encoder_frames),
    ):
        over = np.flatnonzero(sizes > limit)
        if len(over):
            problems.append(
                f"{len(over)} of {len(sizes)} samples exceed the bin budget of {limit} {name}: the first is sample "
                f"{over[0]} with {sizes[over[0]]}, the largest has {sizes.max()}; raise {name} or leave them out"
            )
    empty = np.flatnonzero((tokens < 1) | (frames < 0))
    if len(empty):
        problems.append(f"{len(empty)} samples have no tokens or a negative length: the first is sample {empty[0]}")
    if problems:
        raise ConfigError(problems)
