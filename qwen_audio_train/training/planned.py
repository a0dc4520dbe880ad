"""What our plan changes in a transformers Trainer, for every stage: batches, counting, checkpoints, numbers.

Trainer's own loop, optimiser, schedule and DeepSpeed wiring stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer

from qwen_audio_train.audio.lengths import HOP_SAMPLES, SAMPLING_RATE_HZ
from qwen_audio_train.checkpoint import publish
from qwen_audio_train.config.model import ModelConfig, Precision
from qwen_audio_train.model.load import is_adapter, load_model
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.training.callbacks.stop import GracefulStop
from qwen_audio_train.training.throughput import Throughput

POSITION_FILE = "position.json"
SECONDS_PER_AUDIO_TOKEN = 4 * HOP_SAMPLES / SAMPLING_RATE_HZ


class PlannedTraining(Trainer):
    """Mixin over Trainer (or a Trainer of trl's); ``count_items`` says what a stage's loss is a mean over."""

    # Our loss is a share of one mean over the whole step (losses/reduction.py): nobody divides it again.
    loss_is_scaled_for_ga = True
    item_name = "supervised_tokens"

    def __init__(self, *args: Any, batches: PlannedBatches, keep_checkpoints: int, **kwargs: Any) -> None:
        self.batches = batches
        self.keep_checkpoints = keep_checkpoints
        self.throughput = Throughput()
        self._staging: Path | None = None
        super().__init__(*args, **kwargs)
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
                int(self.stopper.preempted),
                *bad,
            ],
            dtype=torch.float64,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum").cpu()
        num_items, num_tokens, num_positions, num_audio_tokens, stops, preempted, *bad_sums = counts.tolist()
        quarantine.settle(*map(int, bad_sums))
        self.stopper.agree(stops, preempted)
        self.throughput.step(num_items, num_tokens, num_positions, num_audio_tokens * SECONDS_PER_AUDIO_TOKEN)
        return batches, max(num_items, 1.0)  # where nothing of a step could be used, it adds nothing

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the library's estimate knows neither true-length audio nor labels-only logits."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the step cost, and the plan's own idea of the epoch."""
        if "loss" in logs:
            logs.update(self.throughput.read(self.item_name))
            logs["quarantined_samples"] = self.batches.quarantine.num_bad
        # The library counts a run of the loader as an epoch, and starts over when it resumes.
        self.state.epoch = self.batches.epoch_after(self.state.global_step)
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint, all of them.

        The library would hand the file's tensors to ``load_state_dict`` by the names they have there, which are the
        released layout's, warn that none fits, and train on from where the stage began.
        """
        if is_adapter(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target = self.model if model is None else model
        precision = Precision(str(target.dtype).removeprefix("torch."))
        saved = load_model(resume_from_checkpoint, ModelConfig(precision=precision))
        target.load_state_dict(saved.state_dict())

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's checkpoint plus the plan's position, written aside and published whole."""
        step = self.state.global_step
        folder = Path(self.args.output_dir)
        staging_root = publish.staging_folder(folder, step)
        self._staging = staging_root
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            written = staging_root / f"checkpoint-{step}"
            (written / POSITION_FILE).write_text(self.batches.position(step), encoding="utf-8")
            publish.publish(written, folder / written.name)
            publish.retain(folder, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()
