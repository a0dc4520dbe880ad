"""Log-probabilities of labels, without logits of every position and every word at once.

The vocabulary is projected only where a label is, in chunks of bounded size. With one chunk its logits are kept for the
backward pass; with more, each chunk is projected again there, so that the memory is that of one chunk however many
labels there are. The head is called as a module: its weights may be sharded, quantised or adapted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 25
"""Of one chunk: 128 MiB of fp32, some 215 labels of Qwen's vocabulary."""

Scores = tuple[torch.Tensor, ...]
"""(log-probabilities,) or, with details, (log-probabilities, entropy, mean logit, is the label the most probable)."""


def score_labels(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_LD: torch.Tensor,
    label_ids: torch.Tensor,
    *,
    vocabulary: int,
    details: bool = False,
    max_logits: int = MAX_LOGITS,
) -> Scores:
    """Score one label a row of ``hidden_LD``; all results of shape (L,), fp32 but the last, which is bool.

    Args:
        head: (L, D) -> (L, vocabulary), differentiable.
        label_ids: (L,).
        details: also what preference metrics ask for; without gradient.
    """
    # At least one call, also without labels: every rank must make the same module calls (ZeRO-3 would hang).
    chunk_size = max(1, max_logits // vocabulary)
    if len(label_ids) <= chunk_size:
        return _score(head, hidden_LD, label_ids, details)
    chunks = []
    for hidden, ids in zip(hidden_LD.split(chunk_size), label_ids.split(chunk_size), strict=True):
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_score, head, hidden, ids, details, use_reentrant=False))
        else:
            chunks.append(_score(head, hidden, ids, details))
    return tuple(torch.cat(values) for values in zip(*chunks, strict=True))


def _score(
    head: Callable[[torch.Tensor], torch.Tensor], hidden_LD: torch.Tensor, label_ids: torch.Tensor, details: bool
) -> Scores:
    logits_LV = head(hidden_LD).float()
    normaliser_L = torch.logsumexp(logits_LV, dim=-1)
    log_probs_L = logits_LV.gather(-1, label_ids[:, None]).squeeze(-1) - normaliser_L
    if not details:
        return (log_probs_L,)
    with torch.no_grad():
        weighted_LV = (logits_LV - normaliser_L[:, None]).exp_().mul_(logits_LV)
        entropy_L = normaliser_L - weighted_LV.sum(-1)
        return log_probs_L, entropy_L, logits_LV.mean(-1), logits_LV.argmax(-1) == label_ids
