"""Processes and devices: joins the ranks, seeds, and says which rank this is."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import transformers

from qwen_audio_train.config.runtime import Device, RuntimeConfig
from qwen_audio_train.errors import ConfigError

_AFTER_WATCHDOG_SECONDS = 300.0
_GLOO_RESTS_SECONDS = 5.0
_TIMEOUT_WITHOUT_WATCHDOG = timedelta(seconds=1800)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of the run's."""

    rank: int
    world: int
    uses_cpu: bool

    @property
    def is_first(self) -> bool:
        """The rank that writes and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            dist.barrier()


def start(runtime: RuntimeConfig, *, seed: int) -> Ranks:
    """Join the process group that the launcher (torchrun, accelerate, srun) described, and seed everything.

    Must come before TrainingArguments and the model: DeepSpeed on CPU falls back to a world of one otherwise.
    """
    uses_cpu = runtime.device is Device.cpu or not torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if runtime.num_threads:
        torch.set_num_threads(runtime.num_threads)
    if not uses_cpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo" if uses_cpu else "nccl"
    _keep_collectives()
    timeout = collective_timeout(runtime)
    if runtime.deepspeed is not None:
        _start_deepspeed(backend, timeout, uses_cpu=uses_cpu)
    elif world > 1 and not dist.is_initialized():
        dist.init_process_group(backend, timeout=timeout)
    if dist.is_initialized() and uses_cpu:
        atexit.unregister(_let_gloo_rest)  # once, however often this process joins a group
        atexit.register(_let_gloo_rest)
    rank = dist.get_rank() if dist.is_initialized() else 0
    _seed(seed, deterministic=runtime.deterministic)
    _quieten(rank)
    return Ranks(rank=rank, world=world, uses_cpu=uses_cpu)


def stop() -> None:
    """Leave the process group, so that no rank ends while another still talks to it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _let_gloo_rest() -> None:
    """Wait until no thread of gloo's is at work, before the interpreter ends.

    They outlive their group while anybody holds it, and DeepSpeed's hooks do. One that lets go of its last tensor only
    when the interpreter ends aborts the process: exit code -6 of a run that had finished.
    """
    rests, deadline = 0, time.monotonic() + _GLOO_RESTS_SECONDS
    while rests < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # without the interpreter's lock, which such a thread may wait for
        rests = 0 if _gloo_is_busy() else rests + 1


def _gloo_is_busy(threads: Path = Path("/proc/self/task")) -> bool:
    """Whether one of its threads wants to run; where there is no such folder, nobody can tell."""
    for stat in threads.glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            name, _, rest = stat.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            if name == "pt_gloo_runloop" and rest.split()[0] == "R":
                return True
    return False


def check_world(world: int, bins_per_step: int) -> None:
    """A step's bins must divide among the ranks, or the number of ranks would change what a step is."""
    if bins_per_step % world:
        legal = [n for n in range(1, bins_per_step + 1) if bins_per_step % n == 0]
        raise ConfigError(
            f"batching.bins_per_step={bins_per_step} cannot be shared by {world} processes: "
            f"start one of {legal} processes, or choose a multiple of {world}"
        )


def collective_timeout(runtime: RuntimeConfig) -> timedelta:
    """How long a collective may take before the backend ends the process: after the watchdog has named the culprit and,
    where it is to, has ended the run.
    """
    last_seconds = max(runtime.hang_seconds, runtime.hang_exit_seconds)
    return timedelta(seconds=last_seconds + _AFTER_WATCHDOG_SECONDS) if last_seconds else _TIMEOUT_WITHOUT_WATCHDOG


def _keep_collectives() -> None:
    """torch's flight recorder keeps the last collectives (NCCL), and dumps them when one times out."""
    # The older name of the first is what torch reads where the newer is not set.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "20000"))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def _start_deepspeed(backend: str, timeout: timedelta, *, uses_cpu: bool) -> None:
    # A single process without a launcher is a world of one, that nobody else has to find: any free port will do.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if uses_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: PLC0415 - takes seconds to import; only sharded runs pay for it

    if uses_cpu:
        # Its shared-memory collective is compiled at first use (about 40 s and a compiler); gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)


def _seed(seed: int, *, deterministic: bool) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _quieten(rank: int) -> None:
    """Other ranks say only what is wrong; bars of loading and saving are for people at a terminal."""
    if rank:
        transformers.logging.set_verbosity_error()
    if rank or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
