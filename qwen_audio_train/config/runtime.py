"""Where and how a run computes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Device(Enum):
    """``auto``: CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"


@dataclass(frozen=True)
class RuntimeConfig:
    """Devices and sharding. The launcher (python, torchrun, accelerate, srun) decides how many processes."""

    device: Device = Device.auto
    deepspeed: str | None = None
    """A DeepSpeed JSON (``configs/deepspeed/zero2.json`` ...); none means plain DDP or a single process."""
    autocast_bfloat16: bool = False
    """Compute in bf16 over fp32 weights."""
    compile: bool = False
    """Compile the language model's feed-forward blocks and norms with torch.compile, for any shape."""
    num_threads: int = 0
    """CPU threads a process; 0 keeps torch's default."""
    deterministic: bool = True
    """Ask torch for deterministic kernels (warns where there is none)."""
    hang_seconds: float = 900.0
    """No rank has moved for so long: the watchdog names the rank and the phase that all wait for, and dumps stacks.
    More than the longest single phase (first compile, save); 0 turns it off."""
    hang_exit_seconds: float = 1800.0
    """And for so long: the run ends by a non-zero exit code, for the launcher to start again; 0 never does."""
