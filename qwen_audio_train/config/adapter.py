"""Low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class AdapterKind(Enum):
    """``none`` trains the weights themselves."""

    none = "none"
    lora = "lora"


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA through peft."""

    kind: AdapterKind = AdapterKind.none
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    llm_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the language model that get an adapter, by last name."""
    encoder_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """The same in the encoder, when ``trainable.encoder`` is on."""
