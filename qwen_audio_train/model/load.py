"""Open what a stage left behind: a full Hugging Face folder, or a LoRA adapter on top of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoProcessor, AutoTokenizer

from qwen_audio_train.config.model import ModelConfig, Quantization
from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.knobs import checkpoint_activations, quantization_config
from qwen_audio_train.model.span_attention import SPANS

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(source: str) -> bool:
    """Whether a folder holds an adapter rather than a full model."""
    return (Path(source) / ADAPTER_CONFIG).is_file()


def base_of(adapter_folder: str) -> str:
    """The model folder or hub id that an adapter was trained on."""
    settings = json.loads((Path(adapter_folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{adapter_folder}/{ADAPTER_CONFIG} does not name its base model: retrain or mend it")
    return str(base)


def load_processor(source: str) -> Any:
    """Tokenizer, feature extractor and chat template of a model folder or hub id."""
    return AutoProcessor.from_pretrained(source)


def load_tokenizer(source: str) -> Any:
    """Only the tokenizer of a model folder or hub id.

    Raises:
        ConfigError: there is none, or it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{source}' has no tokenizer that can be loaded ({error}): name a saved model's folder, or a hub id"
        ) from error


def _require_complete(source: str, report: dict[str, Any]) -> None:
    """Stock loading fills missing weights at random and warns; training on from that would be a silent disaster."""
    wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    wrong = {name: keys for name, keys in wrong.items() if keys}
    if wrong:
        raise CheckpointError(
            f"{source} is not a complete Qwen2-Audio model: {wrong}. "
            "Train the stage before again, or name another folder"
        )


def load_model(source: str, config: ModelConfig | None = None) -> EfficientQwen2Audio:
    """A model to train or score. An adapter is merged into its base, so that the next stage starts from one model.

    Args:
        source: folder or hub id (``Qwen/Qwen2-Audio-7B``).
        config: how to hold it (dtype, quantised or not, activation checkpointing); plain fp32 without it.

    Raises:
        CheckpointError: the weights are not all there.
        ConfigError: an adapter is to be merged into quantised weights.
    """
    config = config or ModelConfig()
    dtype: torch.dtype = getattr(torch, config.precision.value)
    if is_adapter(source):
        if config.quantization is not Quantization.none:
            raise ConfigError(
                f"model.quantization={config.quantization.value}: {source} is an adapter; merging it into quantised "
                "weights would round it away: export it (recipes/export.py) and name its merged/"
            )
        base = load_model(base_of(source), config)
        model: EfficientQwen2Audio = PeftModel.from_pretrained(base, source).merge_and_unload()
        model.requires_grad_(True)
        model.freeze_positions()
    else:
        model, report = EfficientQwen2Audio.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=SPANS,
            output_loading_info=True,
            quantization_config=quantization_config(config, dtype),
        )
        _require_complete(source, report)
    model.attention_kernel = config.attention
    checkpoint_activations(model, encoder=config.checkpoint_encoder, llm=config.checkpoint_llm)
    return model
