"""Where samples come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from qwen_audio_train.config.augment import AugmentConfig
from qwen_audio_train.config.remote import RemoteConfig


class Stage(Enum):
    """Which recipe a source is for."""

    pretrain = "pretrain"
    sft = "sft"
    dpo = "dpo"


@dataclass  # not frozen: OmegaConf cannot fill in the entries of a dictionary of frozen dataclasses
class SourceConfig:
    """One shard set of a mixture."""

    set: str = ""
    """Folder of the shard set (holds dataset.json), or its URL."""
    weight: float | None = None
    """Share of the samples, relative to the other sources of the stage; exact in every window. All null: every source
    by its size, so that all finish an epoch together."""
    stage: Stage | None = None
    """The recipe that takes this source; null: whichever reads this file."""
    tasks: list[str] = field(default_factory=list)
    """Pretraining samples of these tasks only; empty: all."""
    languages: list[str] = field(default_factory=list)
    """Pretraining samples whose text, and whose speech if there is any, is in one of these; empty: all."""
    num_wordings: int | None = None
    """In place of ``data.num_wordings``."""
    prompt: str | None = None
    """In place of the task's own wording, for pretraining samples that bring no prompt themselves."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What happens to this source's clips; nothing unless it is turned on."""


@dataclass(frozen=True)
class DataConfig:
    """One shard set, or a mixture of several, and how they are read."""

    train: str = ""
    """Folder or URL of the one training set: short for ``sources`` with a single entry named ``train``."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """The mixture, by name. A name stands in tables, metrics and checkpoints: renaming a source changes the plan."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How sets at URLs are read, noises too; sets in folders are not concerned."""
    encode_once: bool = False
    """Run the encoder over every clip once and keep its outputs on disk; needs a frozen encoder."""
    cache_dir: str = "runs/cache"
    """Rendered lengths, encoder outputs, and reference log-probabilities of sets whose folder cannot be written; keyed
    by content, safe to delete."""
    encoded_cache_gb: float = 50.0
    """Most that encoder outputs of all encoders may take below ``cache_dir``, in 1e9 bytes; an hour of audio takes
    0.46 of a 1280 wide encoder. What would exceed it is refused before anything is encoded."""
    num_workers: int = 0
    """DataLoader worker processes a rank. Their number never changes which samples come when."""
    num_wordings: int = 1
    """How many paraphrases of a task's prompt to rotate through (1: the official wording only)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Of the clips of ``train``; a mixture's sources have their own."""
    mask_audio_spans: int = 0
    """Augmentation of encoded clips: spans of audio tokens set to zero, a clip and epoch."""
    mask_audio_span_tokens: int = 8
    """Longest such span."""
    slice_samples: int = 64
    """Neighbouring samples of a shard that are shuffled as one piece: larger reads less scattered, mixes less."""
    skip_steps: list[list[int]] = field(default_factory=list)
    """Steps of the plan to leave out, as [first, last], both included: a stretch that spoilt the loss."""
    accept_change: bool = False
    """Go on from a checkpoint although index, mixture or budget changed: the plan begins a new segment there."""
    max_bad_consecutive: int = 100
    """So many unusable samples in a row on one rank stop the run."""
    max_bad_share: float = 0.001
    """More unusable samples than this share of those read (counted as 10,000 at least) stop the run."""
