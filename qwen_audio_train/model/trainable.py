"""What trains: switches gradients on and off by tower, and puts adapters where they belong."""

from __future__ import annotations

import re
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.trainable import TrainableConfig

ENCODER = "model.audio_tower"
PROJECTOR = "model.multi_modal_projector"
LANGUAGE_MODEL = "model.language_model"


def choose_trainable(model: nn.Module, trainable: TrainableConfig) -> None:
    """Set ``requires_grad`` of every parameter: encoder, projector, or language model with its embeddings and head.

    The encoder's sinusoid table is a constant and never trains.
    """
    learns = {ENCODER: trainable.encoder, PROJECTOR: trainable.projector, LANGUAGE_MODEL: trainable.llm}
    for name, parameter in model.named_parameters():
        tower = next((prefix for prefix in learns if name.startswith(prefix + ".")), LANGUAGE_MODEL)
        can_learn = parameter.is_floating_point() and "embed_positions" not in name  # quantised weights cannot
        parameter.requires_grad_(learns[tower] and can_learn)


def lora_config(adapter: AdapterConfig, trainable: TrainableConfig) -> LoraConfig | None:
    """peft's configuration for this run, or None when the weights themselves train.

    A projector that trains beside adapters is trained in full and saved with them (it is one small matrix).
    """
    if adapter.kind is AdapterKind.none:
        return None
    places = []
    if trainable.llm:
        places.append((LANGUAGE_MODEL, adapter.llm_modules))
    if trainable.encoder:
        places.append((ENCODER, adapter.encoder_modules))
    targets = "|".join(
        rf"{re.escape(tower)}\..*\.({'|'.join(map(re.escape, modules))})" for tower, modules in places if modules
    )
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=f"^({targets})$",
        modules_to_save=["multi_modal_projector"] if trainable.projector else None,
        task_type="CAUSAL_LM",
    )


def with_adapter(model: Any, lora: LoraConfig | None) -> Any:
    """The model with fresh adapters (which change nothing until they train), or as it is."""
    return model if lora is None else get_peft_model(model, lora)


def disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout, also those that attention applies by a number rather than a module.

    A preference loss compares two runs of the model; at the first step they must agree exactly.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(trained, all) parameters of each tower, for the log. Sizes survive ZeRO-3's partitioning and 4-bit packing."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        tower = "encoder" if ENCODER in name else "projector" if PROJECTOR in name else "llm"
        packed = getattr(parameter, "quant_state", None)
        size = packed.shape.numel() if packed else int(getattr(parameter, "ds_numel", parameter.numel()))
        trained, total = counts.get(tower, (0, 0))
        counts[tower] = (trained + size * parameter.requires_grad, total + size)
    return counts
