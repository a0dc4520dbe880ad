"""DPO: trl's trainer, its losses and its metrics, over our batches and our forward.

What is ours: the collated pairs (the prompt with its audio once, both answers behind it), the log-probabilities
(labels-only), one encoding for policy and reference where nothing of the encoder trains, and the mean over all pairs of
the step. What is trl's: every loss type, the reference, the reward metrics. What we assume of it is held in
tests/contract/test_trl_dpo.py.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from qwen_audio_train.losses.reduction import pair_mean_share
from qwen_audio_train.model.efficient import CLIP_KEYS, own_model
from qwen_audio_train.model.trainable import disable_dropout
from qwen_audio_train.pipeline.reference_scores import REFERENCE_KEYS
from qwen_audio_train.training.planned import PlannedTraining

# trl insists on a datasets.Dataset and looks at its first row; the plan delivers the real pairs.
PLACEHOLDER_ROW = {"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}


class AudioDPOTrainer(PlannedTraining, DPOTrainer):
    """(x, y_w, y_l) with audio in x, against a frozen reference: a second model, the base under a LoRA, or none where
    batches bring what it said (training/reference_scores.py)."""

    item_name = "pairs"
    reference_passes = 1
    accelerator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pairs_of_metrics: list[int] = []
        super().__init__(*args, train_dataset=Dataset.from_list([PLACEHOLDER_ROW]), **kwargs)
        if self.precompute_ref_logps:
            self.reference_passes = 0
        for model in (self.model, self.ref_model):
            if model is not None:
                _answer_by_own_forward(model)
                if self.args.disable_dropout:
                    disable_dropout(model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing to compute: each batch brings the stored log-probabilities of its pairs."""
        return dataset

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on this device. Under DeepSpeed the library casts every float to the weights' dtype: stored
        log-probabilities, of which a loss takes small differences, would not survive that in bf16."""
        prepared = super()._prepare_inputs(inputs)
        kept = {name: inputs[name].to(self.args.device) for name in REFERENCE_KEYS if name in inputs}
        return {**prepared, **kept}

    def count_items(self, batch: dict[str, Any]) -> int:
        """Pairs of one micro-batch (the rows that stand in for an empty one have no answer)."""
        return len(batch["input_ids"]) // 2 if len(batch["rows"]["label_ids"]) else 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """trl's mean over this micro-batch's pairs, turned into its share of the step's mean."""
        num_pairs = self.count_items(inputs)
        self._pairs_of_metrics.append(num_pairs)
        inputs = {**inputs, "rows": self._encoded(model, inputs["rows"])}
        everyone, self.accelerator = self.accelerator, _Alone(self.accelerator)
        try:
            mean = super().compute_loss(model, inputs, return_outputs=False)
        finally:
            self.accelerator = everyone
        return pair_mean_share(
            mean if num_pairs else mean.nan_to_num(),  # trl's sft term is a mean over the tokens of no answer
            num_pairs=num_pairs,
            num_pairs_in_step=num_items_in_batch,
            num_ranks=self.args.world_size,
        )

    def _encoded(self, model: Any, rows: dict[str, Any]) -> dict[str, Any]:
        """The rows with their clips encoded, once for policy and reference, if the encoder is the same in both."""
        policy = own_model(self.accelerator.unwrap_model(model))
        if "mels" not in rows or policy.encoder_learns:
            return rows
        clips = {name: rows[name] for name in CLIP_KEYS}
        others = {name: value for name, value in rows.items() if name not in CLIP_KEYS}
        with self.accelerator.autocast():  # accelerate puts it around the whole model's forward only
            return {**others, "audio_states": policy.encode(**clips)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """trl's metrics as means over pairs: of all micro-batches since the last line, on all ranks.

        A micro-batch without a finite value (an empty one, or one whose step was left out) has no part in the mean.
        """
        gathered = self._metrics["train"]
        gathered.pop("num_tokens", None)  # counts this rank only; tokens_per_second counts all
        names = sorted(gathered)
        pairs = torch.tensor(self._pairs_of_metrics, dtype=torch.float64)
        values = torch.tensor([gathered[name] for name in names], dtype=torch.float64).reshape(len(names), len(pairs))
        weights = pairs * values.isfinite()
        totals = torch.stack([(values.nan_to_num() * weights).sum(dim=1), weights.sum(dim=1)])
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), reduction="sum").cpu()
        gathered.clear()
        for name, total, weight in zip(names, *totals.tolist(), strict=True):
            if weight:
                gathered[name] = [total / weight]
        self._pairs_of_metrics.clear()
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written at export, where there is something to say."""


class _Alone:
    """An accelerator that gathers nothing.

    trl gathers each metric of each micro-batch, ten collectives that need equally many pairs on every rank; token
    budgets give each rank its own number, and ``log`` sums once instead.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: Any) -> Any:
        return tensor

    def gather_for_metrics(self, tensor: Any) -> Any:
        return tensor


def _answer_by_own_forward(model: Any) -> None:
    """Take trl's fused head off: our class answers ``fused_lm_head=True`` itself, projecting labels only."""
    own_model(model).__dict__.pop("forward", None)
