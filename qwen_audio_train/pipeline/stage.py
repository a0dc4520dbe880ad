"""Shards -> lengths -> plan -> batches, for one training stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.config.stages import DpoConfig, StageConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.pipeline.batches import BatchBuilder, ClipSource, EncodedSource, MelSource, PlannedBatches
from qwen_audio_train.pipeline.collate import Collator, silent_clip, silent_states
from qwen_audio_train.pipeline.encoded_clips import EncodedClips
from qwen_audio_train.pipeline.measure import measure
from qwen_audio_train.plan.budget import Budget, require_plannable
from qwen_audio_train.plan.sources import Source, fingerprint_of
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.prompts.render import AUDIO_TOKEN, Renderer
from qwen_audio_train.shards.reader import ShardSet

STEPS_FILE = "plan_steps.json"
"""In a run's folder: how many steps its epochs are, and of which plan."""


@dataclass(frozen=True, slots=True)
class Front:
    """What turns records into batches for one model: its tokenizer, its mel bins, and encoded clips if it has them."""

    tokenizer: Any
    num_mel_bins: int
    encoded: EncodedClips | None = None

    @classmethod
    def of(cls, processor: Any, encoded: EncodedClips | None = None) -> Front:
        """From a model's processor."""
        return cls(processor.tokenizer, int(processor.feature_extractor.feature_size), encoded)

    def collator(self) -> Collator:
        """With this model's ids and its kind of silence."""
        silence = silent_clip(self.num_mel_bins) if self.encoded is None else silent_states(self.encoded.width)
        return Collator(
            pad_id=int(self.tokenizer.pad_token_id),
            audio_id=int(self.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)),
            dummy=silence,
        )

    def clips(self, shards: ShardSet, *, mask_spans: int = 0, mask_span_tokens: int = 0) -> ClipSource:
        """Where a set's clips come from."""
        if self.encoded is None:
            return MelSource(shards, LogMel(self.num_mel_bins))
        return EncodedSource(self.encoded, mask_spans, mask_span_tokens)


def stage_batches(config: StageConfig, front: Front, *, rank: int, world: int) -> PlannedBatches:
    """The whole data side of a training stage.

    Raises:
        ShardError, SampleError: the set or a sample of it cannot be used.
        ConfigError: a sample exceeds the budget of a bin, or the budget and the set do not go together.
    """
    shards = ShardSet.open(config.data.train)
    renderer = Renderer(front.tokenizer)
    lengths = measure(
        shards,
        renderer,
        front.tokenizer,
        num_wordings=config.data.num_wordings,
        cache_dir=Path(config.data.cache_dir),
        shows_progress=rank == 0 and config.tracking.progress_bar,
    )
    batching = config.batching
    budget = Budget(
        llm_tokens=batching.llm_tokens_per_bin,
        encoder_frames=batching.encoder_frames_per_bin,
        bins_per_step=batching.bins_per_step,
        layout=batching.layout.value,
        window_samples=batching.window_samples,
    )
    source = Source(shards.name, lengths, fingerprint=fingerprint_of(shards.fingerprint, lengths))
    require_plannable([source], budget)
    plan = Plan([source], seed=config.run.seed, budget=budget)
    clips = front.clips(
        shards, mask_spans=config.data.mask_audio_spans, mask_span_tokens=config.data.mask_audio_span_tokens
    )
    builder = BatchBuilder(
        shards,
        renderer,
        clips,
        front.collator(),
        seed=config.run.seed,
        num_wordings=config.data.num_wordings,
        is_preference=isinstance(config, DpoConfig),
    )
    steps = num_steps(config, plan, writes=rank == 0)
    batches = PlannedBatches(plan, builder, num_steps=steps, rank=rank, world=world)
    batches.num_workers = config.data.num_workers
    return batches


def num_steps(config: StageConfig, plan: Plan, *, writes: bool = True) -> int:
    """``run.max_steps``, or ``run.epochs`` counted in the plan's steps; steps that are left out do not count.

    Counting plans every window once (3 s a million samples), so the number is kept in the run's folder.
    """
    if config.run.max_steps is not None:
        return config.run.max_steps
    assert config.run.epochs is not None
    kept = Path(config.run.dir) / STEPS_FILE
    what = {"plan": plan.hash, "epochs": config.run.epochs}
    steps = _kept_steps(kept, what)
    if steps is None:
        steps = plan.count_steps(config.run.epochs)
        if writes:
            kept.parent.mkdir(parents=True, exist_ok=True)
            staged = kept.with_name(f".{kept.name}.tmp")
            staged.write_text(json.dumps({**what, "steps": steps}, indent=1) + "\n", encoding="utf-8")
            staged.replace(kept)
    if steps == 0:
        raise ConfigError(f"run.epochs={config.run.epochs} comes to no step: raise it, or set run.max_steps")
    return steps - plan.skips.count(0, steps)


def _kept_steps(path: Path, what: dict[str, Any]) -> int | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(kept, dict) or type(kept.get("steps")) is not int:
        return None
    return int(kept["steps"]) if all(kept.get(name) == value for name, value in what.items()) else None
