"""Implicit DPO rewards on held-out pairs: does the policy prefer the better answer more than its reference does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.pipeline.collate import to_device
from qwen_audio_train.pipeline.loading import Draw

PAIRS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class PairRewards:
    """beta * (log pi - log pi_ref) of both answers of each pair."""

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen answer has the higher reward; equal rewards count as wrong."""
        return sum(c > r for c, r in zip(self.chosen, self.rejected, strict=True)) / len(self.chosen)

    @property
    def margin(self) -> float:
        """Mean of chosen minus rejected."""
        return sum(c - r for c, r in zip(self.chosen, self.rejected, strict=True)) / len(self.chosen)


@torch.no_grad()
def pair_rewards(
    policy: EfficientQwen2Audio,
    reference: EfficientQwen2Audio,
    builder: BatchBuilder,
    samples: Sequence[int],
    *,
    beta: float,
) -> PairRewards:
    """Score pairs under both models.

    Args:
        builder: of one preference set, strict; both models hear the same batches.
        samples: numbers of the pairs in the set.
    """
    chosen: list[float] = []
    rejected: list[float] = []
    for start in tqdm(range(0, len(samples), PAIRS_AT_ONCE), desc="rewards", unit="batch", leave=False):
        built = builder.build([Draw(0, i, 0) for i in samples[start : start + PAIRS_AT_ONCE]])
        batch = to_device(built, policy.device)
        ratios = _log_probs(policy, batch) - _log_probs(reference, batch)
        halves = (beta * ratios).chunk(2)
        chosen += halves[0].tolist()
        rejected += halves[1].tolist()
    return PairRewards(tuple(chosen), tuple(rejected))


def _log_probs(model: EfficientQwen2Audio, batch: dict[str, Any]) -> torch.Tensor:
    """Of all chosen, then all rejected answers, shape (2 * pairs,)."""
    scores = model(rows=batch["rows"], labels=batch["input_ids"])
    log_probs: torch.Tensor = scores.log_probs.sum(dim=1)
    return log_probs
