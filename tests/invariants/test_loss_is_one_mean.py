"""A step's loss is one mean over all its tokens (pairs), however many micro-batches it is cut into.

The micro-batches hold very different numbers of targets: a loss divided per micro-batch gives another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from qwen_audio_train.pipeline.loading import Draw

CUTS = {
    "one bin": [0, 4],
    "four bins": [0, 1, 2, 3, 4],
    "two uneven bins": [0, 1, 4],
    "with an empty bin": [0, 0, 3, 4],
}


def step(trainer: Any, samples: Sequence[int], cut: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimiser step over these samples, by the trainer's own methods."""
    trainer.model.zero_grad()
    builder = trainer.batches.builder
    bins = [builder.build([Draw(0, i, 0) for i in samples[start:stop]]) for start, stop in pairwise(cut)]
    trainer.args.gradient_accumulation_steps = trainer.current_gradient_accumulation_steps = len(bins)
    batches, count = trainer.get_batch_samples(iter(bins), len(bins), torch.device("cpu"))
    losses = [trainer.training_step(trainer.model, batch, num_items_in_batch=count) for batch in batches]
    gradients = {
        name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }
    return float(sum(losses)), gradients


@pytest.fixture(scope="module", params=["pretrain", "sft", "dpo"])
def trainer(request, workshop, tmp_path_factory):
    config = workshop.config(request.param, tmp_path_factory.mktemp("run"), "trainable=all")
    made = workshop.trainer(request.param, config)
    with torch.no_grad():  # away from the reference, where every pair's loss is the same
        for name, parameter in made.model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def uneven_samples(trainer: Any) -> list[int]:
    """Two samples with the most targets and two with the fewest."""
    order = np.argsort(trainer.batches.plan.sources[0].lengths.supervised_tokens, kind="stable")
    return [int(order[-1]), int(order[0]), int(order[1]), int(order[-2])]


@pytest.mark.parametrize("cut", list(CUTS)[1:])
def test_loss_and_gradients_do_not_depend_on_the_cut_so_nothing_is_divided_per_micro_batch(trainer, cut):
    samples = uneven_samples(trainer)
    loss, gradients = step(trainer, samples, CUTS["one bin"])
    same_loss, same_gradients = step(trainer, samples, CUTS[cut])
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == same_gradients.keys()
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients.values())
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_the_samples_could_tell_a_mean_of_means(trainer):
    """The check above would mean nothing if each micro-batch had the same mean."""
    samples = uneven_samples(trainer)
    loss, _ = step(trainer, samples, CUTS["one bin"])
    single = [step(trainer, [sample], [0, 1])[0] for sample in samples]
    if trainer.item_name == "pairs":
        assert max(single) - min(single) > 1e-3
        uneven = (single[0] + sum(single[1:]) / 3) / 2
        assert abs(uneven - loss) > 1e-4
    else:
        assert abs(sum(single) / 4 - loss) > 1e-4
