"""Names of everything a run writes down, with units. The same names in metrics.jsonl, wandb and the report."""

from __future__ import annotations

METRIC_NAMES: dict[str, str] = {
    "loss": "mean negative log-likelihood per supervised token of the global batch (preference loss per pair in DPO)",
    "grad_norm": "global L2 norm of the gradients before clipping",
    "learning_rate": "of the step just taken",
    "epoch": "passes over the data so far, by the plan",
    "supervised_tokens": "targets of the last step, over all ranks",
    "pairs": "preference pairs of the last step, over all ranks (DPO)",
    "audio_seconds_per_second": "audio trained on per wall second, over all ranks, since the last line",
    "tokens_per_second": "language-model tokens (padding not counted) per wall second, over all ranks",
    "quarantined_samples": "samples that could not be used since the process started, over all ranks",
    "padding": "share of the language-model positions since the last line that were padding",
    "data_seconds": "wall seconds this rank waited for batches since the last line",
    "save_seconds": "wall seconds that training stood still for checkpoints since the last line, on the first rank",
    "step_seconds": "mean wall seconds of a step since the last line",
    "rewards/accuracies": "share of pairs whose chosen answer has the higher implicit reward (trl)",
    "rewards/margins": "mean reward of chosen minus rejected (trl)",
    "rewards/chosen": "mean implicit reward beta * (log pi - log pi_ref) of the chosen answers (trl)",
    "rewards/rejected": "the same of the rejected answers (trl)",
    "logps/chosen": "mean log-probability of a whole chosen answer under the policy (trl)",
    "logps/rejected": "the same of the rejected answers (trl)",
    "logits/chosen": "mean over pairs of the policy's mean logit at the chosen answers' tokens (trl)",
    "logits/rejected": "the same of the rejected answers (trl)",
    "entropy": "entropy (nats) of the policy's next-token distribution at the answers' tokens (trl)",
    "mean_token_accuracy": "share of the chosen answers' tokens that the policy finds most probable (trl)",
}
