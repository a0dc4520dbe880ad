"""What our plan changes in a transformers Trainer, for every stage: batches, counting, checkpoints, numbers.

Trainer's own loop, optimiser, schedule and DeepSpeed wiring stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from transformers import PrinterCallback

from qwen_audio_train.config.checkpoint import CheckpointConfig
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.pipeline.quarantine import MicroBatch
from qwen_audio_train.samples import BatchSizes
from qwen_audio_train.training.callbacks.stop import GracefulStop
from qwen_audio_train.training.resuming import ResumedTraining
from qwen_audio_train.training.saving import Saver
from qwen_audio_train.training.step_guard import StepGuard
from qwen_audio_train.training.throughput import Throughput
from qwen_audio_train.training.watchdog import Phase, Watchdog


class PlannedTraining(ResumedTraining):
    """Mixin over Trainer (or a Trainer of trl's); ``count_items`` says what a stage's loss is a mean over."""

    # Our loss is a share of one mean over the whole step (losses/reduction.py): nobody divides it again.
    loss_is_scaled_for_ga = True
    item_name = "supervised_tokens"
    reference_passes = 0
    """Forward passes of a frozen reference that a step's model FLOPs hold."""

    def __init__(self, *args: Any, batches: PlannedBatches, checkpoints: CheckpointConfig, **kwargs: Any) -> None:
        self.batches = batches
        self.throughput = Throughput()
        self._tr_loss = torch.zeros(())  # Trainer makes its own when it begins to train
        super().__init__(*args, **kwargs)
        self.saver = Saver(self, checkpoints)
        self.remove_callback(PrinterCallback)  # the progress bar shows, metrics.jsonl keeps
        self.stopper = GracefulStop()
        self.add_callback(self.stopper)
        run_dir = batches.quarantine.path.parent
        self.guard = StepGuard(run_dir, rank=self.args.process_index, world=self.args.world_size)
        self.add_callback(self.guard)
        self.watchdog = Watchdog(run_dir)
        self._propagate_back = self.accelerator.backward
        self.accelerator.backward = self._guarded_backward

    def get_train_dataloader(self) -> Any:
        """Batches of this rank, already split by the plan: accelerate must neither shard nor dispatch them again."""
        return self.batches.loader()

    def count_items(self, batch: dict[str, Any]) -> int:
        """Terms of the stage's mean in one micro-batch."""
        return len(batch["rows"]["label_ids"])

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """A step's micro-batches, and the count its loss is divided by: one sum over all of them and all ranks.

        The same sum carries the ranks' wish to stop and what they could not use, so that they agree at a step's
        boundary, and what the step holds and how long each rank waited for it.

        Raises:
            ShardError: on all ranks alike, before the step is taken: too many samples cannot be used.
        """
        self.throughput.start()
        self.watchdog.enter(Phase.data, step=self.state.global_step + 1)
        started = time.perf_counter()
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        waited = [0.0] * self.args.world_size  # each rank fills its own place, so that their sum tells the longest
        waited[self.args.process_index] = time.perf_counter() - started
        self.watchdog.enter(Phase.agreement)
        quarantine = self.batches.quarantine
        bad = quarantine.note(batches, step=self.state.global_step + 1)
        counts = torch.tensor(
            [
                sum(self.count_items(batch) for batch in batches),
                int(self.stopper.wanted),
                int(self.stopper.preempted),
                *bad,
                *astuple(_sizes_of(batches)),
                *waited,
            ],
            dtype=torch.float64,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum").cpu()
        num_items, stops, preempted, *rest = counts.tolist()
        bad_sums, sizes, waits = rest[: len(bad)], rest[len(bad) : -len(waited)], rest[-len(waited) :]
        quarantine.settle(*map(int, bad_sums))
        self.stopper.agree(stops, preempted)
        self.throughput.step(num_items, BatchSizes(*map(int, sizes)), data_seconds=max(waits))
        self.guard.begin([batch.origins if isinstance(batch, MicroBatch) else () for batch in batches])
        self._logged_loss_before = self._tr_loss.clone()
        self.watchdog.enter(Phase.forward)
        return batches, max(num_items, 1.0)  # where nothing of a step could be used, it adds nothing

    def _guarded_backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """What Trainer calls between a micro-batch's forward and backward pass; DeepSpeed's also takes the step."""
        is_last = self.accelerator.sync_gradients
        self.watchdog.enter(Phase.backward)
        self._propagate_back(self.guard.guarded(loss, is_last=is_last), **kwargs)
        self.watchdog.enter(Phase.optimiser if is_last else Phase.forward)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm, which says whether the step is applied: asked for once a step, before Trainer's optimiser call.

        A step is left out where it is not finite. DeepSpeed has left it out by now; otherwise the gradients are
        dropped, and optimisers leave a parameter without a gradient, and what they keep of it, as it is.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.is_deepspeed_enabled:
            is_applied = not self.accelerator.optimizer_step_was_skipped
        else:
            is_applied = math.isfinite(norm)
            if not is_applied:
                model.zero_grad(set_to_none=True)
            # What keeps Trainer and accelerate from moving the schedule on.
            self.optimizer._is_overflow = not is_applied
        if is_applied:
            self.guard.applied()
            return norm
        step = self.state.global_step + 1
        self.guard.left_out(step, self.batches.plan_step(step))
        # The logged loss is a mean over applied steps.
        self._tr_loss.copy_(self._logged_loss_before)
        self._globalstep_last_logged += 1
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the library's estimate knows neither true-length audio nor labels-only logits."""
        return 0

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.watchdog.enter(Phase.save if self.control.should_save else Phase.log)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the step cost, and the plan's own idea of the epoch."""
        if "loss" in logs:
            logs.update(self.throughput.read(self.item_name))
            logs["quarantined_samples"] = self.batches.quarantine.num_bad
            logs["skipped_steps"] = self.guard.num_skipped
        # The library counts a run of the loader as an epoch, and starts over when it resumes.
        self.state.epoch = self.batches.epoch_after(self.state.global_step)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A whole checkpoint with the plan's position, published beside the next steps."""
        started = time.perf_counter()
        self.saver.save()
        self.throughput.saved(time.perf_counter() - started)


def _sizes_of(batches: Sequence[dict[str, torch.Tensor]]) -> BatchSizes:
    """Sum over micro-batches; one that does not know its sizes counts nothing."""
    return sum((getattr(batch, "sizes", BatchSizes()) for batch in batches), BatchSizes())
