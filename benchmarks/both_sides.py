"""Policy and reference, each twice over the same weights: as stock transformers' class and as ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2AudioForConditionalGeneration

from benchmarks.random_model import Dimensions, build_plain, set_encoder_trains, with_lora
from qwen_audio_train.model.efficient import EfficientQwen2Audio


@dataclass(frozen=True)
class Models:
    """One side's."""

    policy: Any
    reference: Any
    """Of other weights, so that preferences have something to compare. Nothing of it trains."""

    def set_encoder_trains(self, trains_encoder: bool) -> None:
        """Of the policy."""
        set_encoder_trains(self.policy, trains_encoder)


@dataclass(frozen=True)
class BothSides:
    """Stock and ours share every storage of weights, so both fit where one does."""

    stock: Models
    ours: Models
    dims: Dimensions
    device: torch.device
    dtype: torch.dtype
    has_lora: bool

    @classmethod
    def build(cls, dims: Dimensions, device: torch.device, dtype: torch.dtype, *, lora: bool) -> BothSides:
        """Random weights.

        Args:
            lora: adapters in the language model, and the encoder; else everything trains.
        """
        policies = _shared(dims, device, dtype, seed=0, lora=lora)
        references = _shared(dims, device, dtype, seed=1, lora=False)
        for model in references:
            model.requires_grad_(False)
        stock, ours = (Models(policy, reference) for policy, reference in zip(policies, references, strict=True))
        return cls(stock, ours, dims, device, dtype, lora)

    def enlarge_weights(self) -> BothSides:
        """Matrices that keep the size of what they are given: as initialised, logits hardly depend on the audio, and
        a wrong clip would go unseen."""
        for seed, model in enumerate((self.ours.policy, self.ours.reference)):
            torch.manual_seed(seed)
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed_positions" not in name:
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return self

    def zero_grad(self) -> None:
        """Of both policies, after a step that was broken off."""
        for models in (self.stock, self.ours):
            models.policy.zero_grad()


def _shared(dims: Dimensions, device: torch.device, dtype: torch.dtype, *, seed: int, lora: bool) -> tuple[Any, Any]:
    """(stock, ours) over one set of weights."""
    ours: Any = build_plain(EfficientQwen2Audio, dims, device, dtype, seed=seed)
    stock: Any = build_plain(Qwen2AudioForConditionalGeneration, dims, device, dtype, seed=seed)
    if lora:
        ours, stock = with_lora(ours, trains_encoder=True), with_lora(stock, trains_encoder=True)
    stock.load_state_dict(ours.state_dict(), assign=True)
    return stock, ours
