"""The optimiser and its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OptimName(Enum):
    """``adamw_8bit``: both moments in 8 bits, block by block, through bitsandbytes."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay."""

    name: OptimName = OptimName.adamw
    learning_rate: float = 1e-4
    """Peak."""
    final_learning_rate_ratio: float = 0.1
    """Last learning rate as a share of the peak."""
    warmup_steps: int = 100
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    max_skipped_consecutive: int = 10
    """So many steps in a row that could not be applied (a loss or gradient that is no number, or a spike) stop the
    run."""
    max_skipped_share: float = 0.01
    """The same as a share of the run's steps, of at least 1,000."""
    spike_factor: float = 0.0
    """A step whose loss exceeds the recent ones' median so many times is not applied; 0 looks for no spikes."""
    spike_window_steps: int = 128
    """Applied steps that the median is over; half as many must be known before a spike is one."""
