"""DPO: trl's trainer, its losses and its metrics, over our batches and our forward.

What is ours: the collated pairs (audio named twice, encoded once), the log-probabilities (labels-only), and the mean
over all pairs of the step. What is trl's: every loss type, the reference, the reward metrics. What we assume of it is
held in tests/contract/test_trl_dpo.py.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from qwen_audio_train.losses.reduction import pair_mean_share
from qwen_audio_train.training.planned import PlannedTraining

# trl insists on a datasets.Dataset and looks at its first row; the plan delivers the real pairs.
PLACEHOLDER_ROW = {"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}


class AudioDPOTrainer(PlannedTraining, DPOTrainer):
    """(x, y_w, y_l) with audio in x, against a frozen reference (a second model, or the base under a LoRA)."""

    item_name = "pairs"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=Dataset.from_list([PLACEHOLDER_ROW]), **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                _answer_by_own_forward(model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def count_items(self, batch: dict[str, torch.Tensor]) -> int:
        """Pairs of one micro-batch (the row that stands in for an empty one has no answer)."""
        chosen = batch["completion_mask"][: len(batch["input_ids"]) // 2]
        return int(chosen.any(dim=1).sum())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """trl's mean over this micro-batch's pairs, turned into its share of the step's mean."""
        mean = super().compute_loss(model, inputs, return_outputs=False)
        return pair_mean_share(
            mean,
            num_pairs=self.count_items(inputs),
            num_pairs_in_step=num_items_in_batch,
            num_ranks=self.args.world_size,
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written at export, where there is something to say."""


def _answer_by_own_forward(model: Any) -> None:
    """Take trl's fused head off: our class answers ``fused_lm_head=True`` itself, projecting labels only."""
    for module in model.modules():
        if "forward" in module.__dict__ and hasattr(module, "embed") and hasattr(module, "score"):
            del module.__dict__["forward"]
