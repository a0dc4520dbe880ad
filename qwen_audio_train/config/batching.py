"""How much goes into a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Layout(Enum):
    """``packed``: samples one after another in one row, no padding. ``padded``: samples of like length, one a row."""

    packed = "packed"
    padded = "padded"


@dataclass(frozen=True)
class BatchingConfig:
    """A step is ``bins_per_step`` bins; a bin is what one rank runs at once. Never a number of samples."""

    layout: Layout = Layout.packed
    llm_tokens_per_bin: int = 4096
    """Language-model tokens, padding included (packed rows have none)."""
    encoder_frames_per_bin: int = 12_000
    """20 ms encoder frames, in the padded layout with padding (a 30 s clip has 1500)."""
    bins_per_step: int = 4
    """Global: any world size that divides it gives the same steps; each rank accumulates the rest."""
    window_samples: int = 4096
    """Samples that are shuffled and binned together."""
