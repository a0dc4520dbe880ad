"""What to score and how to generate."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from qwen_audio_train.config.remote import RemoteConfig


class PromptForm(Enum):
    """``completion``: the pretraining form, as the official evaluations use; ``chat``: ChatML instructions."""

    completion = "completion"
    chat = "chat"


@dataclass(frozen=True)
class EvaluationConfig:
    """A split, a prompt form, and greedy generation."""

    pretrain_set: str = ""
    """Shard set with transcribe / translate records: error rates, BLEU, language identification."""
    preference_set: str = ""
    """Shard set of preference pairs for reward accuracy; empty leaves it out."""
    reference: str = ""
    """Model folder that rewards are measured against."""
    form: PromptForm = PromptForm.completion
    name: str = "model"
    """Name of this row in tables and files."""
    output: str = ""
    """Folder for scores.json and predictions.jsonl."""
    max_new_tokens: int = 128
    beta: float = 0.1
    """Scale of the DPO reward."""
    llm_tokens_per_batch: int = 8192
    limit: int | None = None
    """Score only the first records of the set (reported in the result)."""
    encode_once: bool = False
    encoded_cache_gb: float = 50.0
    """Most that encoder outputs may take below ``cache_dir``, in 1e9 bytes."""
    cache_dir: str = "runs/cache"
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How sets at URLs are read."""
