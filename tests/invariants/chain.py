"""One rank of a run without a model: takes planned batches step by step and writes down what all ranks held.

What the ranks held is gathered over gloo, so a step is only ever written whole. Every other step the position is
published, as a run does with its checkpoints; a killed run goes on from there and repeats what came after.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from qwen_audio_train.pipeline.batches import PlannedBatches, source_seed
from qwen_audio_train.pipeline.loading import Draw
from qwen_audio_train.pipeline.quarantine import Limits, MicroBatch, Quarantine
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.prompts.tasks import wording_choice
from qwen_audio_train.samples import Lengths
from qwen_audio_train.shards.reader import ShardSet

NUM_STEPS = 48
BINS_PER_STEP = 8
SECONDS_PER_STEP = 0.03
SECONDS_HELD = 600
WEIGHTS = {"large": Fraction(3, 4), "small": Fraction(1, 4)}


@dataclass(frozen=True)
class KeyBuilder:
    """Reads what a batch is made of, verifies the audio, and hands on who was read: key and augmentation seed."""

    names: tuple[str, ...]
    sets: tuple[ShardSet, ...]

    def build(self, draws: Sequence[Draw]) -> MicroBatch:
        """``who`` (samples, 3 + key bytes): source, epoch, seed, key."""
        rows = []
        for draw in draws:
            shards = self.sets[draw.source]
            record = shards.record(draw.sample)
            for clip in record.clips:
                shards.read_clip(clip, record.origin)
            seed = wording_choice(source_seed(5, self.names[draw.source]), draw.epoch, draw.sample) % 1_000_003
            rows.append([draw.source, draw.epoch, seed, *record.origin.key.encode().ljust(16)])
        return MicroBatch({"who": torch.tensor(rows, dtype=torch.int64).reshape(-1, 19)}, usable=[True] * len(rows))


def planned(folder: Path, *, rank: int, world: int, workers: int) -> PlannedBatches:
    """The same run for any number of ranks and workers."""
    sets = tuple(ShardSet.open(folder / name) for name in WEIGHTS)
    sources = []
    for shards, (name, weight) in zip(sets, WEIGHTS.items(), strict=True):
        first, clips = shards.clip_lengths()
        sizes = (np.array([clips[a] for a in first[:-1]]) // 640).astype(np.int32)
        sources.append(Source(name, Lengths(sizes, sizes, sizes), shards.fingerprint, weight))
    budget = Budget(80, 80, bins_per_step=BINS_PER_STEP, window_samples=32, slice_samples=4)
    batches = PlannedBatches(
        Plan(sources, seed=5, budget=budget),
        KeyBuilder(tuple(WEIGHTS), sets),
        num_steps=NUM_STEPS,
        rank=rank,
        world=world,
        quarantine=Quarantine(folder, Limits(1, 0.0), rank=rank),
    )
    batches.num_workers = workers
    return batches


def told(batch: MicroBatch) -> list[list[Any]]:
    """[source, epoch, seed, key] of each sample."""
    return [[*row[:3], bytes(row[3:]).decode().strip()] for row in batch["who"].tolist()]


def unbroken(folder: Path) -> dict[int, list[Any]]:
    """Step -> bins, of one process that nobody stops."""
    batches = planned(folder, rank=0, world=1, workers=0)
    bins = [told(batch) for batch in batches.loader()]
    return {step: bins[step * BINS_PER_STEP : (step + 1) * BINS_PER_STEP] for step in range(NUM_STEPS)}


def rank_of_run(folder: Path, rendezvous: Path, rank: int, world: int, workers: int, held_at: int | None) -> None:
    """One process of a run; goes on where the position stands. At ``held_at``, if any, it waits to be killed."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    batches = planned(folder, rank=rank, world=world, workers=workers)
    position = folder / "position.json"
    if position.exists():
        batches.resume(position.read_text())
    loader = iter(batches.loader())
    with (folder / "log.jsonl").open("a") as log:
        for step in range(batches.start_step, NUM_STEPS):
            if step == held_at:
                time.sleep(SECONDS_HELD)
            mine = [told(next(loader)) for _ in range(batches.bins_per_rank)]
            everyones: list[Any] = [None] * world
            dist.all_gather_object(everyones, mine)
            if rank == 0:
                bins = [everyones[number % world][number // world] for number in range(BINS_PER_STEP)]
                log.write(json.dumps({"step": step, "world": world, "bins": bins}) + "\n")
                log.flush()
                if step % 2:
                    staged = position.with_suffix(".tmp")
                    staged.write_text(batches.position(step + 1))
                    os.replace(staged, position)
            time.sleep(SECONDS_PER_STEP)
    assert next(loader, None) is None, "the run ends where it should"
    dist.destroy_process_group()
