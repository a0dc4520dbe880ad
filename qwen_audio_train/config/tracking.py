"""What is written down while a run runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class WandbMode(Enum):
    """``offline`` needs no account; sync later with ``wandb sync``."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass(frozen=True)
class TrackingConfig:
    """metrics.jsonl in the run folder is always written; wandb as asked."""

    wandb: WandbMode = WandbMode.offline
    project: str = "qwen_audio_train"
    log_every_steps: int = 10
    progress_bar: bool = True
    peak_tflops: float | None = None
    """Dense bf16 TFLOP/s that one device can reach, for model_flops_utilisation; null looks the GPU up by its name."""
