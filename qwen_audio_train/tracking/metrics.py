"""Names of everything a run writes down, with units. The same names in metrics.jsonl, wandb and the report."""

from __future__ import annotations

# Rates, means and shares are of the steps since the last line. docs/metrics.md has the formulas.
METRIC_NAMES: dict[str, str] = {
    "loss": "mean negative log-likelihood per supervised token of the global batch (preference loss per pair in DPO)",
    "grad_norm": "global L2 norm of the gradients before clipping",
    "learning_rate": "of the step just taken",
    "epoch": "passes over the data so far, by the plan",
    "supervised_tokens": "targets of the last step, over all ranks",
    "pairs": "preference pairs of the last step, over all ranks (DPO)",
    "audio_seconds_per_second": "audio trained on per wall second, over all ranks",
    "supervised_tokens_per_second": "targets per wall second, over all ranks",
    "tokens_per_second": "language-model tokens (padding not counted) per wall second, over all ranks",
    "llm_padding": "share of the language model's positions that were padding",
    "encoder_padding": "share of the encoder's frames that were padding; absent where nothing was encoded",
    "step_seconds": "mean wall seconds of a step",
    "data_seconds": "mean wall seconds of a step in which its slowest rank waited for batches",
    "compute_seconds": "the rest of step_seconds: forward, backward, collectives, optimiser",
    "data_wait_share": "data_seconds / step_seconds",
    "checkpoint_seconds": "spent on saving, which no other number contains; absent where nothing was saved",
    "model_tflops_per_second": "TFLOP that the mathematics asks for, per wall second and device",
    "model_flops_utilisation": "model_tflops_per_second / the device's bf16 peak; absent where that is not known",
    "peak_device_memory_gib": "most GPU memory allocated at a time by the first rank, GiB (CUDA)",
    "peak_process_memory_gib": "largest resident set of the first rank since it started, GiB (CPU)",
    "quarantined_samples": "samples that could not be used since the process started, over all ranks",
    "skipped_steps": "steps of the run that could not be applied: a loss or gradient that is no number, or a spike",
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
