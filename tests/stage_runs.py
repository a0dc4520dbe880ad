"""Training stages in this process on the tiny model, put together from the same pieces as the recipes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.config.load import compose
from qwen_audio_train.config.preference import Reference
from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.knobs import compile_pointwise
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.model.trainable import choose_trainable, lora_config, with_adapter
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training import run, runtime
from qwen_audio_train.training.arguments import preference_arguments, trainer_arguments
from qwen_audio_train.training.initial_model import encoded_clips
from qwen_audio_train.training.reference_scores import store_reference_scores
from tests import sets

STAGES = ("pretrain", "sft", "dpo")
SETTINGS = [
    "batching.llm_tokens_per_bin=256",
    "batching.bins_per_step=2",
    "batching.window_samples=16",
    "tracking=none",
    "tracking.log_every_steps=1",
    "tracking.progress_bar=false",
    "optim.warmup_steps=0",
    "optim.learning_rate=1e-3",
    "runtime.device=cpu",
]


@dataclass(frozen=True)
class Workshop:
    """A tiny model and a set for each stage, made once a test session."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Workshop:
        model, processor = build_tiny(seed=1)
        save_built(model, processor, folder / "model")
        # The same weights with dropout in the language model, for tests in which randomness must come back as it was.
        config = json.loads((folder / "model" / "config.json").read_text())
        config["text_config"]["attention_dropout"] = 0.2
        (folder / "dropout").mkdir()
        for file in (folder / "model").iterdir():
            (folder / "dropout" / file.name).symlink_to(file)
        (folder / "dropout" / "config.json").unlink()
        (folder / "dropout" / "config.json").write_text(json.dumps(config))
        sets.pretrain_set(folder / "pretrain")
        sets.chat_set(folder / "sft")
        sets.preference_set(folder / "dpo")
        return cls(folder)

    def overrides(self, stage: str, run_dir: Path, *overrides: str, model: str = "model", steps: int = 4) -> list[str]:
        """Settings of a short run; what comes last wins."""
        return [
            f"run.dir={run_dir}",
            f"run.max_steps={steps}",
            f"model.start_from={self.folder / model}",
            "model.precision=float32",
            "model.checkpoint_encoder=false",
            "model.checkpoint_llm=false",
            f"data.train={self.folder / stage}",
            f"data.cache_dir={self.folder / 'cache'}",
            *SETTINGS,
            *overrides,
        ]

    def config(self, stage: str, run_dir: Path, *overrides: str, model: str = "model", steps: int = 4) -> Any:
        """The typed configuration of a short run."""
        return compose(stage, self.overrides(stage, run_dir, *overrides, model=model, steps=steps))

    def trainer(self, stage: str, config: Any) -> Any:
        """What a recipe makes before it trains."""
        ranks = runtime.start(config.runtime, seed=config.run.seed)
        source = str(config.model.start_from)
        run.open_run(config, ranks)
        processor = load_processor(source)
        batches = stage_batches(config, Front.of(processor, encoded_clips(config, source, ranks)), rank=0, world=1)
        if stage == "dpo" and config.preference.reference is Reference.stored:
            store_reference_scores(config, source, processor.tokenizer, batches, ranks)
        arguments = trainer_arguments(config, ranks=ranks, num_steps=batches.num_steps)
        model = load_model(source, config.model)
        compile_pointwise(model, wanted=config.runtime.compile)
        choose_trainable(model, config.trainable)
        lora = lora_config(config.adapter, config.trainable)
        shared: dict[str, Any] = {"batches": batches, "checkpoints": config.checkpoint}
        if stage == "dpo":
            return _dpo_trainer(config, processor, model, lora, arguments, shared)
        from transformers import TrainingArguments

        from qwen_audio_train.training.trainer import LikelihoodTrainer

        return LikelihoodTrainer(model=with_adapter(model, lora), args=TrainingArguments(**arguments), **shared)

    def train(self, stage: str, config: Any, trainer: Any = None) -> Any:
        """Train to the end, from where the run stands; the trainer, trained."""
        trainer = trainer or self.trainer(stage, config)
        run.train(trainer, config, runtime.Ranks(rank=0, world=1, uses_cpu=True), title=stage)
        return trainer


def _dpo_trainer(
    config: Any, processor: Any, model: Any, lora: Any, arguments: dict[str, Any], shared: dict[str, Any]
) -> Any:
    from trl import DPOConfig

    from qwen_audio_train.training.dpo_trainer import AudioDPOTrainer

    reference = None
    if lora is None and config.preference.reference is Reference.live:
        reference = load_model(str(config.model.start_from), config.model).requires_grad_(False)
    return AudioDPOTrainer(
        model=model,
        ref_model=reference,
        peft_config=lora,
        args=DPOConfig(**arguments, **preference_arguments(config.preference)),
        processing_class=processor.tokenizer,
        **shared,
    )
