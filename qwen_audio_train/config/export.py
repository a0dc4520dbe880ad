"""What to hand to downstream teams."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_audio_train.config.remote import RemoteConfig


@dataclass(frozen=True)
class ExportConfig:
    """From a stage's result to folders that stock libraries load."""

    stage: str = ""
    """The stage's ``final`` folder: a LoRA adapter, or a full model."""
    output: str = ""
    """Gets ``adapter/`` (when the stage trained one) and ``merged/``."""
    verify_set: str = ""
    """Shard set that the reload is checked on: ten generations and their logits."""
    llm_only: bool = False
    """Also write ``llm_only/``: an adapter without encoder or projector parts, those folded into its base, which
    is what serving engines accept."""
    max_logit_difference: float = 1e-4
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How sets at URLs are read."""
