"""Our configuration -> the keyword arguments of transformers' TrainingArguments (and trl's DPOConfig)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_audio_train.config.model import Precision
from qwen_audio_train.config.optim import OptimName
from qwen_audio_train.config.preference import PreferenceConfig, Reference
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.tracking.run_folder import CHECKPOINTS
from qwen_audio_train.training.runtime import Ranks

FINAL = "final"
INITIAL = "initial"
OPTIMISERS = {OptimName.adamw: "adamw_torch", OptimName.adamw_8bit: "adamw_bnb_8bit"}


def trainer_arguments(config: StageConfig, *, ranks: Ranks, num_steps: int) -> dict[str, Any]:
    """Arguments that every stage shares. What they leave at its default, the library decides.

    Our plan owns the order of samples and our checkpoint part owns where things are saved, so skipping, shuffling,
    rotation and reporting are switched off here.
    """
    optim = config.optim
    return {
        "output_dir": str(Path(config.run.dir) / CHECKPOINTS),
        "max_steps": num_steps,
        "per_device_train_batch_size": 1,  # one bin; its size is a token budget
        "gradient_accumulation_steps": config.batching.bins_per_step // ranks.world,
        "learning_rate": optim.learning_rate,
        "warmup_steps": optim.warmup_steps,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": optim.final_learning_rate_ratio},
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_epsilon": optim.epsilon,
        "max_grad_norm": optim.max_grad_norm,
        "optim": OPTIMISERS[optim.name],
        "bf16": config.runtime.autocast_bfloat16 or _shards_bfloat16(config),
        "deepspeed": config.runtime.deepspeed,
        "use_cpu": ranks.uses_cpu,
        # Every parameter that trains takes part in every batch: nothing needs to be looked for. But without looking,
        # DDP rearranges its buckets after a process's first step; from three ranks on that changes the order of sums,
        # and a resumed run would be another one in the last bit. The CPU is where runs are compared bit for bit.
        "ddp_find_unused_parameters": ranks.uses_cpu and ranks.world > 2,
        "ddp_backend": None if ranks.world == 1 else "gloo" if ranks.uses_cpu else "nccl",
        "seed": config.run.seed,
        "logging_steps": config.tracking.log_every_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.checkpoint.every_steps,
        "save_total_limit": None,
        "ignore_data_skip": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def _shards_bfloat16(config: StageConfig) -> bool:
    """DeepSpeed then holds bf16 weights and, sharded over the ranks, the fp32 ones that the optimiser updates."""
    return config.runtime.deepspeed is not None and config.model.precision is Precision.bfloat16


def preference_arguments(preference: PreferenceConfig) -> dict[str, Any]:
    """What trl's DPOConfig has beyond TrainingArguments."""
    return {
        "beta": preference.beta,
        "loss_type": list(preference.loss_types),
        "loss_weights": list(preference.loss_weights) or None,
        "label_smoothing": preference.label_smoothing,
        "disable_dropout": preference.disable_dropout,
        # What batches bring along (training/reference_scores.py); trl's own pass over a data set is switched off.
        "precompute_ref_log_probs": preference.reference is Reference.stored,
        "max_length": None,  # nothing is ever cut
        "gradient_checkpointing": False,  # trl's default is on; model.checkpoint_llm and checkpoint_encoder decide
    }
