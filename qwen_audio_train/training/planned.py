"""What our plan changes in a transformers Trainer, for every stage: batches, counting, checkpoints, numbers.

Trainer's own loop, optimiser, schedule and DeepSpeed wiring stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PrinterCallback

from qwen_audio_train.audio.lengths import HOP_SAMPLES, SAMPLING_RATE_HZ
from qwen_audio_train.config.checkpoint import CheckpointConfig
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.training.callbacks.stop import GracefulStop
from qwen_audio_train.training.resuming import ResumedTraining
from qwen_audio_train.training.saving import Saver
from qwen_audio_train.training.throughput import Throughput

SECONDS_PER_AUDIO_TOKEN = 4 * HOP_SAMPLES / SAMPLING_RATE_HZ


class PlannedTraining(ResumedTraining):
    """Mixin over Trainer (or a Trainer of trl's); ``count_items`` says what a stage's loss is a mean over."""

    # Our loss is a share of one mean over the whole step (losses/reduction.py): nobody divides it again.
    loss_is_scaled_for_ga = True
    item_name = "supervised_tokens"

    def __init__(self, *args: Any, batches: PlannedBatches, checkpoints: CheckpointConfig, **kwargs: Any) -> None:
        self.batches = batches
        self.throughput = Throughput()
        super().__init__(*args, **kwargs)
        self.saver = Saver(self, checkpoints)
        self.remove_callback(PrinterCallback)  # the progress bar shows, metrics.jsonl keeps
        self.stopper = GracefulStop()
        self.add_callback(self.stopper)

    def get_train_dataloader(self) -> Any:
        """Batches of this rank, already split by the plan: accelerate must neither shard nor dispatch them again."""
        return self.batches.loader()

    def count_items(self, batch: dict[str, torch.Tensor]) -> int:
        """Terms of the stage's mean in one micro-batch."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """A step's micro-batches, and the count its loss is divided by: one sum over all of them and all ranks.

        The same sum carries the ranks' wish to stop and what they could not use, so that they agree at a step's
        boundary.

        Raises:
            ShardError: on all ranks alike, before the step is taken: too many samples cannot be used.
        """
        started = time.perf_counter()
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        self.throughput.waited(time.perf_counter() - started)
        quarantine = self.batches.quarantine
        bad = quarantine.note(batches, step=self.state.global_step + 1)
        counts = torch.tensor(
            [
                sum(self.count_items(batch) for batch in batches),
                sum(int(batch["attention_mask"].sum()) for batch in batches),
                sum(batch["attention_mask"].numel() for batch in batches),
                sum(len(batch["audio_source"]) for batch in batches),
                int(self.stopper.wanted),
                *bad,
            ],
            dtype=torch.float64,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum").cpu()
        num_items, num_tokens, num_positions, num_audio_tokens, stops, *bad_sums = counts.tolist()
        quarantine.settle(*map(int, bad_sums))
        self.stopper.agreed = stops > 0
        self.throughput.step(num_items, num_tokens, num_positions, num_audio_tokens * SECONDS_PER_AUDIO_TOKEN)
        return batches, max(num_items, 1.0)  # where nothing of a step could be used, it adds nothing

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the library's estimate knows neither true-length audio nor labels-only logits."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the step cost, and the plan's own idea of the epoch."""
        if "loss" in logs:
            logs.update(self.throughput.read(self.item_name))
            logs["save_seconds"] = self.saver.read_stall()
            logs["quarantined_samples"] = self.batches.quarantine.num_bad
        # The library counts a run of the loader as an epoch, and starts over when it resumes.
        self.state.epoch = self.batches.epoch_after(self.state.global_step)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A whole checkpoint with the plan's position, published beside the next steps."""
        self.saver.save()
