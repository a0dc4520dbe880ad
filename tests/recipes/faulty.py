"""A recipe in which some steps go wrong, for tests: ``python -m tests.recipes.faulty STAGE FAULT [overrides]``.

FAULT is ``kind:rank:step,step,...``: on that rank the first micro-batch of those steps (as the run counts, from 1) goes
wrong. ``loss``: its loss is NaN. ``gradient``: its loss is fine, its gradient is infinite. ``spike``: its loss is ten
thousand times what it was.
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import torch

from qwen_audio_train.training.trainer import LikelihoodTrainer


class _Infinite(torch.autograd.Function):
    """The same forward, an infinite gradient backward."""

    @staticmethod
    def forward(context: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


FAULTS = {
    "loss": lambda loss: loss * math.nan,
    "gradient": _Infinite.apply,
    "spike": lambda loss: loss * 1e4,
}


def break_steps(fault: str) -> None:
    """Make ``LikelihoodTrainer.compute_loss`` go wrong from now on."""
    kind, rank, steps = fault.split(":")
    broken = {int(step) for step in steps.split(",")}
    compute_loss = LikelihoodTrainer.compute_loss

    def faulty(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, *args, **kwargs)
        step = self.state.global_step + 1
        is_first = self.__dict__.get("_step_met") != step
        self._step_met = step
        return FAULTS[kind](loss) if is_first and step in broken and self.args.process_index == int(rank) else loss

    LikelihoodTrainer.compute_loss = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    stage, wrong = sys.argv[1:3]
    sys.argv = [f"recipes/{stage}.py", *sys.argv[3:]]
    break_steps(wrong)
    importlib.import_module(f"recipes.{stage}").main()
