"""Where samples come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """One shard set a split (mixtures come with the data engine)."""

    train: str = ""
    """Folder of the training shard set (holds dataset.json)."""
    encode_once: bool = False
    """Run the encoder over every clip once and keep its outputs on disk; needs a frozen encoder."""
    cache_dir: str = "runs/cache"
    """Rendered lengths and encoder outputs, keyed by content; safe to delete."""
    num_workers: int = 0
    """DataLoader worker processes a rank. Their number never changes which samples come when."""
    num_wordings: int = 1
    """How many paraphrases of a task's prompt to rotate through (1: the official wording only)."""
    mask_audio_spans: int = 0
    """Augmentation of encoded clips: spans of audio tokens set to zero, a clip and epoch."""
    mask_audio_span_tokens: int = 8
    """Longest such span."""
