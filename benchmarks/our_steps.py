"""A training step as this package runs it: plan, collator, model and loss are the package's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from benchmarks.speech_mixes import Sample
from benchmarks.stock_steps import preference_loss
from qwen_audio_train.audio import lengths
from qwen_audio_train.losses.reduction import pair_mean_share, token_mean_share
from qwen_audio_train.pipeline.collate import Batch, Collator, silent_clip, to_device
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.samples import BatchSizes, Lengths

FRAMES_PER_TOKEN = 3
"""Encoder frames of a bin for each of its tokens, about as in the default budget: tokens are what fills a bin."""


@dataclass(frozen=True)
class Bin:
    """One micro-batch."""

    batch: Batch
    sizes: BatchSizes
    numbers: tuple[int, ...]
    """Of its samples."""


def our_bins(
    samples: Sequence[Sample],
    tokens_per_bin: int,
    *,
    pairs: bool,
    device: torch.device,
    vocab: int,
) -> list[Bin]:
    """The samples in the bins that the plan makes of them.

    Args:
        tokens_per_bin: raised where one sample alone has more.
        vocab: the last id of which stands for audio.
    """
    tokens, frames = _lengths(samples, pairs=pairs)
    most_frames = max(FRAMES_PER_TOKEN * tokens_per_bin, int(frames.max()))
    budget = Budget(
        llm_tokens=max(tokens_per_bin, int(tokens.max())),
        encoder_frames=most_frames,
        bins_per_step=1,
        window_samples=len(samples),
        layout="packed",
    )
    plan = Plan([Source("mix", Lengths(tokens, tokens, frames))], seed=0, budget=budget)
    collator = Collator(0, vocab - 1, silent_clip(samples[0].clip.mel_MF.shape[0]), "packed")
    bins = []
    for step in islice(plan.steps_from(), plan.count_steps(1)):
        numbers = tuple(step.bins[0].samples.tolist())
        drawn = [samples[number] for number in numbers]
        clips = [[sample.clip] for sample in drawn]
        if pairs:
            batch, sizes = collator.pairs([sample.pair for sample in drawn], clips)
        else:
            batch, sizes = collator.rows([sample.answered for sample in drawn], clips)
        bins.append(Bin(to_device(batch, device), sizes, numbers))
    assert sorted(n for b in bins for n in b.numbers) == list(range(len(samples)))
    return bins


def _lengths(samples: Sequence[Sample], *, pairs: bool) -> tuple[np.ndarray, np.ndarray]:
    tokens = [
        len(sample.pair.prompt.input_ids)
        + len(sample.pair.chosen_ids)
        + (len(sample.pair.rejected_ids) if pairs else 0)
        for sample in samples
    ]
    frames = [lengths.encoder_frames(sample.clip.mel_frames) for sample in samples]
    return np.array(tokens, np.int32), np.array(frames, np.int32)


def our_loss(model: Any, bin_: Bin, num_tokens_in_step: int) -> torch.Tensor:
    """The bin's share of the step's mean over supervised tokens."""
    scores = model(**bin_.batch)
    return token_mean_share(scores.log_probs, num_tokens_in_step=num_tokens_in_step, num_ranks=1)


def our_pair_scores(model: Any, bin_: Bin) -> torch.Tensor:
    """Sums of log-probabilities of the answers, shape (2 P,): all chosen, then all rejected."""
    # As trl calls it: the layout of its labels, whose first column stands for the prompt.
    scores = model(rows=bin_.batch["rows"], labels=bin_.batch["input_ids"])
    total: torch.Tensor = scores.log_probs.sum(1)
    return total


def our_pair_loss(policy: Any, reference: Any | torch.Tensor, bin_: Bin, num_pairs_in_step: int) -> torch.Tensor:
    """The bin's share of the step's mean of sigmoid DPO losses.

    Args:
        reference: a model, or what it scored before (2 P,).
    """
    scores = our_pair_scores(policy, bin_)
    if not isinstance(reference, torch.Tensor):
        with torch.no_grad():
            reference = our_pair_scores(reference, bin_)
    return pair_mean_share(
        preference_loss(scores - reference),
        num_pairs=len(scores) // 2,
        num_pairs_in_step=num_pairs_in_step,
        num_ranks=1,
    )
