"""Steps that must not be applied: a loss or gradient that is no number, or a loss far above the recent ones.

The decision is made on the device and carried by the gradient itself. A micro-batch whose loss is not finite, and the
last micro-batch of a step whose loss is a spike, are multiplied by NaN before their backward pass; every finite loss by
1, which changes no bit. Reduction then hands the NaN to all ranks, so that all see the same gradient norm and none
applies the step: in plain and data-parallel training ``training/planned.py`` drops the gradients, under DeepSpeed the
ZeRO optimiser does (its overflow path). Weights, optimiser and schedule stay as they were; the plan goes on, so the
step's samples are used up.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from qwen_audio_train.config.optim import OptimConfig
from qwen_audio_train.errors import DivergedError
from qwen_audio_train.pipeline.quarantine import json_line
from qwen_audio_train.samples import Origin

NONFINITE_FILE = "nonfinite.jsonl"
SPIKES_FILE = "spikes.jsonl"
LEAST_STEPS_JUDGED = 1_000
"""A share is taken of at least so many steps: the first one left out of a run would be all of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A step that was not applied, as all ranks know it."""

    step: int
    """As the run counts: from 1, left-out ones included."""
    plan_step: int
    """As ``data.skip_steps`` counts."""
    why: str
    """``loss``: not finite on some rank. ``gradient``: all losses were finite, its norm was not. ``spike``."""

    def __str__(self) -> str:
        words = {"loss": "loss not finite", "gradient": "gradient not finite", "spike": "loss spike"}
        return f"step {self.step} (plan step {self.plan_step}): {words[self.why]}"


class StepGuard(TrainerCallback, ExportableState):
    """Knows the losses of the step under way, decides, counts. Its state is in ``trainer_state.json``."""

    def __init__(self, run_dir: Path, *, rank: int, world: int, optim: OptimConfig | None = None) -> None:
        self.run_dir = run_dir
        self.optim = optim or OptimConfig()
        self._rank = rank
        self._world = world
        self.num_skipped = 0
        """Over the run, from its first step."""
        self.row = 0
        """Left-out steps since the last applied one."""
        self.recent: list[float] = []
        """Losses of the last applied steps, newest last; kept only where spikes are looked for."""
        self._last_saved: int | None = None
        self._losses: list[torch.Tensor] = []
        self._origins: list[tuple[Origin, ...]] = []
        self._step_loss: torch.Tensor | None = None

    # What Trainer calls.

    def state(self) -> dict[str, Any]:
        """For ``trainer_state.json``."""
        return {
            "args": {},
            "attributes": {"num_skipped": self.num_skipped, "row": self.row, "recent": list(self.recent)},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the checkpoint's counts; those of a checkpoint made before there were any are zero."""
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        attributes = kept["attributes"]
        self.num_skipped, self.row = int(attributes["num_skipped"]), int(attributes["row"])
        self.recent = [float(loss) for loss in attributes["recent"]]
        self._last_saved = state.global_step or None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember where a report can point to."""
        self._last_saved = state.global_step

    # What a step calls, in this order.

    def begin(self, origins: Sequence[tuple[Origin, ...]]) -> None:
        """A step begins; ``origins``: of the samples of each micro-batch of this rank."""
        self._origins = list(origins)
        self._losses.clear()
        self._step_loss = None

    def guarded(self, loss: torch.Tensor, *, is_last: bool) -> torch.Tensor:
        """A micro-batch's share of the loss, to be propagated back: bit for bit the same, or NaN.

        Nothing is read from the device. With ``optim.spike_factor`` the last micro-batch of a step waits for one sum
        over all ranks.
        """
        own = loss.detach()
        self._losses.append(own)
        is_good = torch.isfinite(own)
        if is_last and self.optim.spike_factor:
            self._step_loss = torch.stack(self._losses).sum().float()
            if self._world > 1:
                dist.all_reduce(self._step_loss)
            self._step_loss = self._step_loss / self._world
            is_good = is_good & (self._step_loss <= self.spike_above)
        return loss * torch.where(is_good, torch.ones_like(own), torch.full_like(own, math.nan))

    @property
    def spike_above(self) -> float:
        """Loss from which on a step is a spike; infinite while too few steps are known, or their median is no scale."""
        if len(self.recent) < (self.optim.spike_window_steps + 1) // 2:
            return math.inf
        median = statistics.median(self.recent)
        return median * self.optim.spike_factor if median > 0 else math.inf

    def applied(self) -> None:
        """The step was applied."""
        self.row = 0
        if self._step_loss is not None:
            self.recent.append(float(self._step_loss))
            del self.recent[: -self.optim.spike_window_steps]

    def left_out(self, step: int, plan_step: int) -> None:
        """The step was not applied, on any rank: write down what was in it.

        Raises:
            DivergedError: on all ranks alike, if it was one too many.
        """
        losses = [float(loss) for loss in self._losses]
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        num_bad = torch.tensor([float(len(bad))], device=self._losses[0].device)
        if self._world > 1:
            dist.all_reduce(num_bad)
        what = LeftOut(step, plan_step, "loss" if num_bad.item() else self._why_finite())
        suspects = bad if what.why == "loss" else range(len(losses))
        path = self.run_dir / (SPIKES_FILE if what.why == "spike" else NONFINITE_FILE)
        samples = [(origin, losses[number]) for number in suspects for origin in self._origins[number]]
        self._write(path, what, samples)
        if self._rank == 0:
            logger.warning("%s: not applied, see %s", what, path)
        self.num_skipped += 1
        self.row += 1
        self._require_within_limits(what, path, samples)

    def _why_finite(self) -> str:
        is_spike = self._step_loss is not None and float(self._step_loss) > self.spike_above
        return "spike" if is_spike else "gradient"

    def _write(self, path: Path, what: LeftOut, samples: Sequence[tuple[Origin, float]]) -> None:
        if not samples:
            return
        # One write to a file opened for appending: ranks of one machine do not mix their lines.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, b"".join(self._line(what, origin, loss) for origin, loss in samples))
        finally:
            os.close(descriptor)

    def _line(self, what: LeftOut, origin: Origin, loss: float) -> bytes:
        where = {"step": what.step, "plan_step": what.plan_step, "rank": self._rank, "why": what.why}
        named = {"dataset": origin.dataset, "shard": origin.shard, "key": origin.key}
        # JSON knows no NaN.
        return json_line({**where, **named, "micro_batch_loss": loss if math.isfinite(loss) else str(loss)})

    def _require_within_limits(self, what: LeftOut, path: Path, samples: Sequence[tuple[Origin, float]]) -> None:
        optim = self.optim
        judged = max(what.step, LEAST_STEPS_JUDGED)
        if self.row >= optim.max_skipped_consecutive:
            limit = f"{self.row} in a row, optim.max_skipped_consecutive={optim.max_skipped_consecutive}"
        elif self.num_skipped > optim.max_skipped_share * judged:
            limit = f"{self.num_skipped} of {what.step}, optim.max_skipped_share={optim.max_skipped_share}"
            limit += f" (of at least {LEAST_STEPS_JUDGED})"
        else:
            return
        first = f"{samples[0][0]}" if samples else "not on this rank"
        saved = "none yet" if self._last_saved is None else f"checkpoint-{self._last_saved}"
        raise DivergedError(
            f"too many steps could not be applied: {limit}. Last: {what}.\n"
            f"Their samples are listed in {path}; the first of this step: {first}\n"
            f"Last good checkpoint: {saved}; weights have not changed in any left-out step. Look at the samples "
            f"(scripts/show_sample.py) and the learning rate; then start the same command again, with "
            f"data.skip_steps=[[{what.plan_step - self.row + 1},{what.plan_step}]] to leave these steps out, a lower "
            "optim.learning_rate, or higher limits"
        )
