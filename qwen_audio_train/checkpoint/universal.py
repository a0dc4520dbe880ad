"""Another number of ranks under DeepSpeed: its universal checkpoint, made from ours when it is needed.

checkpoints/
  checkpoint-500/     as it was written
  universal-500/      beside it, whole or absent too: each parameter and its moments in one piece; the next published
                      checkpoint makes it superfluous and removes it

Without DeepSpeed one rank writes everything whole, and any number of ranks can load it.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qwen_audio_train.checkpoint import manifest, publish
from qwen_audio_train.errors import CheckpointError

logger = logging.getLogger(__name__)
_TAIL_CHARACTERS = 2000
_LATEST_UNIVERSAL = "latest_universal"
_SMALL_FILES = ("trainer_state.json", "scheduler.pt", "position.json")
"""What is loaded from a checkpoint besides DeepSpeed's folder."""


def universal_folder(checkpoint: Path) -> Path:
    """Where a checkpoint lies for any number of ranks."""
    return checkpoint.with_name(f"{publish.UNIVERSAL_PREFIX}{checkpoint.name.partition('-')[2]}")


def is_universal(folder: Path) -> bool:
    """Whether this is a converted checkpoint."""
    return (folder / _LATEST_UNIVERSAL).is_file()


def require_convertible(checkpoint: Path, *, was: int | None, now: int | None) -> None:
    """Raises CheckpointError if a run of one sharding cannot go on from a checkpoint of another."""
    if was == now:
        return
    raise CheckpointError(
        f"{checkpoint} was written under {_named(was)}, and this run is {_named(now)}: the optimiser's state cannot be "
        f"converted. Go on with {_option(was)} (the number of processes may change), or start a new run from the "
        f"weights alone: model.start_from={checkpoint} with another run.dir"
    )


def convert(checkpoint: Path) -> None:
    """Make ``universal_folder(checkpoint)`` unless it is there and whole. For one process; the checkpoint stays.

    DeepSpeed's converter runs in a process of its own, without a device.

    Raises:
        CheckpointError: the converter failed; says with what.
    """
    target = universal_folder(checkpoint)
    if _is_whole(target, checkpoint):
        return
    started = time.perf_counter()
    tag = (checkpoint / publish.LATEST).read_text(encoding="utf-8").strip()
    staged = target.with_name(f".{target.name}.inprogress")
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir()
    converted = f"{tag}_universal"
    _run_converter(checkpoint / tag, staged / converted)
    # The converter names the tag itself in a file beside its output.
    (staged / _LATEST_UNIVERSAL).write_text(converted, encoding="utf-8")
    for name in _SMALL_FILES:
        shutil.copyfile(checkpoint / name, staged / name)
    facts = manifest.read(checkpoint).facts
    publish.publish(staged, target, facts={**facts, "converted_from": _source(checkpoint)})
    logger.warning("Converted %s for any number of ranks in %.0f s", checkpoint, time.perf_counter() - started)


def mend_loaded(engine: Any, weight_decays: Sequence[float]) -> None:
    """Undo what loading a universal checkpoint does to torch's AdamW under ZeRO-3.

    One ``step`` tensor is shared by all sub-groups and would be counted up once for each; and all groups get the weight
    decay of the first (``load_hp_checkpoint_state_from_checkpoint_dir_stage3``). No harm under ZeRO-1 and 2.
    """
    optimizer = engine.optimizer.optimizer
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=True):
        group["weight_decay"] = weight_decay


def _run_converter(source: Path, target: Path) -> None:
    workers = str(max(1, min(4, os.cpu_count() or 1)))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source.absolute()), "--output_folder", str(target.absolute())]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    # As a program of its own: none of what a launcher says of ranks, and no GPU, which the ranks need.
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckpointError(
            f"{source}: converting it for another number of ranks failed (exit code {done.returncode}): "
            f"{done.stderr[-_TAIL_CHARACTERS:].strip()}. Go on with as many ranks as wrote it"
        )


def _is_whole(target: Path, checkpoint: Path) -> bool:
    if not target.exists():
        return False
    try:
        return manifest.verify(target).facts.get("converted_from") == _source(checkpoint)
    except CheckpointError as error:
        logger.warning("Converting again: %s", error)
        return False


def _source(checkpoint: Path) -> str:
    """Tells a checkpoint from another of the same step."""
    return manifest.digest_of(manifest.read(checkpoint))


def _named(stage: int | None) -> str:
    return "plain data parallelism (or one process)" if stage is None else f"ZeRO-{stage}"


def _option(stage: int | None) -> str:
    return "runtime.deepspeed=null" if stage is None else f"runtime=zero{stage}"
