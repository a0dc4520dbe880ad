"""Which towers learn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainableConfig:
    """Which parts of the model get gradients.

    The Qwen2-Audio report does not say what it trains in which stage (its objective names both encoder and LLM); these
    are choices. With LoRA, ``llm`` and ``encoder`` say where adapters are put and the base stays frozen.
    """

    encoder: bool = True
    projector: bool = True
    llm: bool = True
