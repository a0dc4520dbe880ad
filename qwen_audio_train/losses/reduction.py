"""From per-token or per-pair terms to one micro-batch's share of the step's loss.

A step is many micro-batches on many ranks. Its loss is one mean over the whole step: all supervised tokens weigh the
same, wherever they are (all pairs, for preferences). Each micro-batch contributes its own *sum* over one *count*.
Data-parallel training then averages gradients over ranks, so a share is multiplied by the number of ranks once, here.
No other code in the package divides a loss by anything.
"""

from __future__ import annotations

import torch


def token_mean_share(
    log_probs: torch.Tensor, *, num_tokens_in_step: torch.Tensor | int, num_ranks: int
) -> torch.Tensor:
    """A micro-batch's share of the token-mean negative log-likelihood.

    Args:
        log_probs: (B, S - 1), zero where nothing is supervised.
        num_tokens_in_step: supervised tokens over all micro-batches and ranks of the step.
        num_ranks: ranks whose gradients will be averaged.
    """
    return -log_probs.sum() * num_ranks / num_tokens_in_step


def pair_mean_share(
    mean_over_pairs: torch.Tensor, *, num_pairs: int, num_pairs_in_step: torch.Tensor | int, num_ranks: int
) -> torch.Tensor:
    """The same for a preference loss that arrives as a mean over the micro-batch's own pairs (trl's convention)."""
    return mean_over_pairs * num_pairs * num_ranks / num_pairs_in_step
