"""The preference objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
"""What trl 1.16 computes (it would tell only at the first step)."""


class Reference(Enum):
    """``live``: the reference model is asked in every step. ``stored``: its log-probabilities are computed once, kept
    beside the shards, and training holds no reference model."""

    live = "live"
    stored = "stored"


@dataclass(frozen=True)
class PreferenceConfig:
    """Handed to trl's DPOTrainer as they are. The Qwen2-Audio report discloses none of these."""

    reference: Reference = Reference.live
    """Where the reference's log-probabilities come from; stored ones need clips that no epoch changes, and are asked
    for without dropout."""
    beta: float = 0.1
    loss_types: list[str] = field(default_factory=lambda: ["sigmoid"])
    """Any of trl's (sigmoid, ipo, hinge, ...); several are summed with ``loss_weights``."""
    loss_weights: list[float] = field(default_factory=list)
    """One a loss type; empty means all 1."""
    label_smoothing: float = 0.0
    disable_dropout: bool = True
