"""Pretraining and SFT: next-token likelihood of the supervised tokens."""

from __future__ import annotations

from typing import Any

from qwen_audio_train.losses.reduction import token_mean_share
from qwen_audio_train.training.planned import PlannedTraining


class LikelihoodTrainer(PlannedTraining):
    """transformers.Trainer over our batches, with the loss from losses/."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the step's token mean."""
        scores = model(**inputs)
        loss = token_mean_share(scores.log_probs, num_tokens_in_step=num_items_in_batch, num_ranks=self.args.world_size)
        return (loss, scores) if return_outputs else loss
