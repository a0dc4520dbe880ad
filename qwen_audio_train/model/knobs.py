"""What a loaded model can be told so that it takes less memory or time: checkpointing, quantised weights, compilation.

None of it changes names of parameters, what is saved, or (but for quantisation) what is computed. Which knobs exclude
each other is in config/validate_knobs.py, what each saves and costs in docs/knobs.md.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from qwen_audio_train.config.model import ModelConfig, Quantization
from qwen_audio_train.config.optim import OptimConfig, OptimName
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.trainable import ENCODER, PROJECTOR

STAYS_UNQUANTISED = (ENCODER, PROJECTOR, "lm_head")
"""Full names: transformers matches them from the start of a module's name (or as its end), so ``audio_tower`` alone
would match no layer of the encoder."""


def require_bitsandbytes(model: ModelConfig, optim: OptimConfig) -> None:
    """Raises ConfigError when a setting needs bitsandbytes and it is not installed."""
    wanted = []
    if optim.name is OptimName.adamw_8bit:
        wanted.append(f"optim.name={optim.name.value}")
    if model.quantization is not Quantization.none:
        wanted.append(f"model.quantization={model.quantization.value}")
    if wanted and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{' and '.join(wanted)} needs bitsandbytes, which is not installed: pip install -e '.[quantized]', or set "
            "optim.name=adamw and model.quantization=none"
        )


def quantization_config(model: ModelConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How ``from_pretrained`` quantises the language model's linear layers while it loads; None leaves them.

    Raises:
        ConfigError: it should, and bitsandbytes is not installed.
    """
    require_bitsandbytes(model, OptimConfig())
    skipped = list(STAYS_UNQUANTISED)
    match model.quantization:
        case Quantization.none:
            return None
        case Quantization.nf4:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute_dtype,
                llm_int8_skip_modules=skipped,
            )
        case Quantization.int8:
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)


def checkpoint_activations(model: Any, *, encoder: bool, llm: bool) -> None:
    """Recompute the layers of either tower in the backward pass. Not reentrant: a tower whose inputs need no gradient
    (behind frozen embeddings, or the encoder's own) still gives its weights theirs."""
    for tower, wanted in ((model.model.audio_tower, encoder), (model.model.language_model, llm)):
        if wanted:
            tower.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def compile_pointwise(model: Any, *, wanted: bool) -> None:
    """Fuse what surrounds the language model's matrices: feed-forward blocks and RMS norms, for rows of any length.

    Compiled in place at their first call, hence with adapters that are put in later. The encoder is left alone: its
    norms and GELUs are single kernels already. Attention has kernels of its own.
    """
    if not wanted:
        return
    for layer in model.model.language_model.layers:
        parts: tuple[nn.Module, ...] = (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
        for part in parts:
            part.compile(dynamic=True)
