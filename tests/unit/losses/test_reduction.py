"""Shares of micro-batches and ranks add up to one mean."""

from __future__ import annotations

import pytest
import torch

from qwen_audio_train.losses.reduction import pair_mean_share, token_mean_share

# Supervised log-probabilities of four micro-batches with 1, 5, 0 and 2 tokens.
PARTS = [
    torch.tensor([[-1.0, 0.0]]),
    torch.tensor([[-2.0, -3.0, -1.5, -0.5, -4.0]]),
    torch.zeros(1, 3),
    torch.tensor([[-1.0, -6.0]]),
]
COUNT = 8
MEAN = (1 + 2 + 3 + 1.5 + 0.5 + 4 + 1 + 6) / 8


def test_token_shares_of_one_rank_add_up_to_the_token_mean():
    shares = [token_mean_share(part, num_tokens_in_step=COUNT, num_ranks=1) for part in PARTS]
    assert float(sum(shares)) == pytest.approx(MEAN)


def test_token_shares_averaged_over_ranks_are_the_token_mean():
    ranks = [[PARTS[0], PARTS[1]], [PARTS[2], PARTS[3]]]
    sums = [sum(token_mean_share(part, num_tokens_in_step=COUNT, num_ranks=2) for part in parts) for parts in ranks]
    assert float(sum(sums) / 2) == pytest.approx(MEAN)


def test_pair_shares_weigh_pairs_alike_however_they_are_grouped():
    losses = torch.tensor([0.1, 0.9, 2.0, 0.4, 0.6])
    groups = [losses[:1], losses[1:5]]
    shares = [
        pair_mean_share(group.mean(), num_pairs=len(group), num_pairs_in_step=torch.tensor(5), num_ranks=1)
        for group in groups
    ]
    assert float(sum(shares)) == pytest.approx(float(losses.mean()))
    unweighted = (groups[0].mean() + groups[1].mean()) / 2
    assert float(unweighted) != pytest.approx(float(losses.mean())), "this test could not tell a mean of means"


def test_a_micro_batch_without_targets_adds_nothing_but_stays_differentiable():
    log_probs = (torch.zeros(2, 3, requires_grad=True) * 0).float()
    share = token_mean_share(log_probs, num_tokens_in_step=7, num_ranks=1)
    share.backward()
    assert float(share) == 0.0
