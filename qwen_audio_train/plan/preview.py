"""What an epoch of a plan will cost, before anything runs: for the log's first lines and for dry runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen_audio_train.plan.bins import bin_size
from qwen_audio_train.plan.steps import Plan


@dataclass(frozen=True, slots=True)
class EpochPreview:
    """Counts of one epoch over all ranks. Shares are between 0 and 1."""

    epoch: int
    steps: int
    samples: int
    bins: int
    empty_bins: int
    llm_tokens: int
    """Real ones."""
    supervised_tokens: int
    encoder_frames: int
    token_padding_share: float
    """Of the tokens that are computed, how many are padding (none in the packed layout)."""
    frame_padding_share: float
    unused_token_share: float
    """Of the bins' token budget, how much neither token nor padding uses."""
    unused_frame_share: float
    waiting_share: float
    """Of the ranks' time, how much they wait for the rank with the dearest bin, were there a rank for each bin of a
    step. Cost is the share of the token budget plus the share of the frame budget."""


def describe(plan: Plan, epoch: int) -> EpochPreview:
    """Plan a whole epoch and sum it up. Costs all of the epoch's windows."""
    tokens = plan.lengths.llm_tokens.astype(np.int64)
    frames = plan.lengths.encoder_frames.astype(np.int64)
    first = plan.first_step(epoch)
    steps = plan.steps_in_epoch(epoch)
    sizes = np.zeros((steps, plan.budget.bins_per_step, 2), dtype=np.int64)
    samples = empty_bins = 0
    for offset in range(steps):
        for place, members in enumerate(plan.step(first + offset).bins):
            sizes[offset, place] = bin_size(tokens[members], frames[members], plan.budget)
            samples += len(members)
            empty_bins += len(members) == 0
    computed_tokens, computed_frames = (int(total) for total in sizes.sum(axis=(0, 1)))
    real_tokens, real_frames = int(tokens.sum(dtype=np.int64)), int(frames.sum(dtype=np.int64))
    num_bins = sizes.shape[0] * sizes.shape[1]
    costs = sizes[..., 0] / plan.budget.llm_tokens + sizes[..., 1] / plan.budget.encoder_frames
    return EpochPreview(
        epoch=epoch,
        steps=steps,
        samples=samples,
        bins=num_bins,
        empty_bins=empty_bins,
        llm_tokens=real_tokens,
        supervised_tokens=int(plan.lengths.supervised_tokens.sum(dtype=np.int64)),
        encoder_frames=real_frames,
        token_padding_share=1 - real_tokens / computed_tokens,
        frame_padding_share=1 - real_frames / computed_frames if computed_frames else 0.0,
        unused_token_share=1 - computed_tokens / (num_bins * plan.budget.llm_tokens),
        unused_frame_share=1 - computed_frames / (num_bins * plan.budget.encoder_frames),
        waiting_share=float(1 - costs.mean(axis=1).sum() / costs.max(axis=1).sum()),
    )
