"""Shards -> lengths -> plan -> batches, for one training stage."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.config.batching import Layout
from qwen_audio_train.config.stages import DpoConfig, StageConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.pipeline.batches import BatchBuilder, PlannedBatches, SampleSource, source_seed
from qwen_audio_train.pipeline.clips import ClipSource, EncodedSource, MelSource
from qwen_audio_train.pipeline.collate import Collator, silent_clip, silent_states
from qwen_audio_train.pipeline.encoded_clips import EncodedClips
from qwen_audio_train.pipeline.measure import Measured, measure
from qwen_audio_train.pipeline.mixture_table import TableRow, mixture_table
from qwen_audio_train.pipeline.quarantine import Limits, Quarantine
from qwen_audio_train.pipeline.sources import OpenSource, left_out, open_sources
from qwen_audio_train.plan.budget import Budget, require_plannable
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.prompts.render import AUDIO_TOKEN, Renderer
from qwen_audio_train.shards.reader import ShardSet

STEPS_FILE = "plan_steps.json"
"""In a run's folder: how many steps its epochs are, and of which plan."""

logger = logging.getLogger(__name__)


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

    def collator(self, layout: Layout = Layout.packed) -> Collator:
        """With this model's ids and its kind of silence."""
        silence = silent_clip(self.num_mel_bins) if self.encoded is None else silent_states(self.encoded.width)
        return Collator(
            pad_id=int(self.tokenizer.pad_token_id),
            audio_id=int(self.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)),
            dummy=silence,
            layout=layout.value,
        )

    def clips(
        self,
        shards: ShardSet,
        *,
        augmenter: Augmenter | None = None,
        mask_spans: int = 0,
        mask_span_tokens: int = 0,
    ) -> ClipSource:
        """Where a set's clips come from."""
        if self.encoded is None:
            return MelSource(shards, LogMel(self.num_mel_bins), augmenter)
        return EncodedSource(self.encoded, mask_spans, mask_span_tokens)


def stage_batches(config: StageConfig, front: Front, *, rank: int, world: int) -> PlannedBatches:
    """The whole data side of a training stage.

    Raises:
        ShardError: a set, or too many of its samples, cannot be used.
        ConfigError: sources and stage do not go together, or a sample exceeds the budget of a bin.
    """
    renderer = Renderer(front.tokenizer)
    limits = Limits(config.data.max_bad_consecutive, config.data.max_bad_share)
    rows, sources = _measured(config, front, renderer, limits, shows_progress=rank == 0)
    budget = budget_of(config)
    planned = [Source(opened.name, measured.lengths, measured.fingerprint, opened.weight) for opened, measured in rows]
    _require_fitting(planned, [measured for _, measured in rows], budget)
    plan = Plan(planned, seed=config.run.seed, budget=budget, skip_steps=config.data.skip_steps)
    batches = PlannedBatches(
        plan,
        BatchBuilder(
            sources, renderer, front.collator(config.batching.layout), is_preference=isinstance(config, DpoConfig)
        ),
        num_steps=num_steps(config, plan, writes=rank == 0),
        rank=rank,
        world=world,
        quarantine=Quarantine(Path(config.run.dir), limits, rank=rank),
    )
    batches.num_workers = config.data.num_workers
    batches.reads_ahead = any(source.shards.is_remote for source in sources)
    batches.accepts_change = config.data.accept_change
    batches.table = _table(config, plan, [measured for _, measured in rows], batches.num_steps)
    return batches


def _measured(
    config: StageConfig, front: Front, renderer: Renderer, limits: Limits, *, shows_progress: bool
) -> tuple[list[tuple[OpenSource, Measured]], tuple[SampleSource, ...]]:
    """Every source of the stage, as the plan and as the batches take it."""
    rows: list[tuple[OpenSource, Measured]] = []
    sources: list[SampleSource] = []
    for opened in open_sources(config):
        augmenter = opened.augmenter()
        measured = measure(
            opened.shards,
            renderer,
            front.tokenizer,
            selection=opened.selection,
            augmenter=augmenter,
            limits=limits,
            shares_prompts=config.batching.layout is Layout.packed,
            cache_dir=Path(config.data.cache_dir),
            shows_progress=shows_progress and config.tracking.progress_bar,
        )
        _say_what_is_bad(opened, measured)
        rows.append((opened, measured))
        clips = front.clips(
            opened.shards,
            augmenter=augmenter,
            mask_spans=config.data.mask_audio_spans,
            mask_span_tokens=config.data.mask_audio_span_tokens,
        )
        seed = source_seed(config.run.seed, opened.name)
        sources.append(SampleSource(opened.name, opened.shards, clips, opened.selection, measured.numbers, seed))
    return rows, tuple(sources)


def budget_of(config: StageConfig) -> Budget:
    """Limits of bins and the shape of a step."""
    batching = config.batching
    return Budget(
        llm_tokens=batching.llm_tokens_per_bin,
        encoder_frames=batching.encoder_frames_per_bin,
        bins_per_step=batching.bins_per_step,
        layout=batching.layout.value,
        window_samples=batching.window_samples,
        slice_samples=config.data.slice_samples,
    )


def num_steps(config: StageConfig, plan: Plan, *, writes: bool = True) -> int:
    """``run.max_steps``, or ``run.epochs`` of the mixture counted in the plan's steps, left-out ones excepted.

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
    steps -= plan.skips.count(0, steps)
    if steps <= 0:
        raise ConfigError(f"run.epochs={config.run.epochs} comes to no step: raise it, or set run.max_steps")
    return steps


def _kept_steps(path: Path, what: dict[str, Any]) -> int | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(kept, dict) or type(kept.get("steps")) is not int:
        return None
    return int(kept["steps"]) if all(kept.get(name) == value for name, value in what.items()) else None


def _require_fitting(sources: Sequence[Source], rows: Sequence[Measured], budget: Budget) -> None:
    """Ask the kept largest values first: only a source that does not fit is looked at sample by sample."""
    over = [
        source
        for source, row in zip(sources, rows, strict=True)
        if row.facts.most_llm_tokens > budget.llm_tokens or row.facts.most_encoder_frames > budget.encoder_frames
    ]
    if over:
        require_plannable(over, budget)


def _say_what_is_bad(source: OpenSource, measured: Measured) -> None:
    if measured.facts.num_bad:
        logger.warning(
            "%s: %s of %s samples cannot be used and are left out, see %s",
            source.name,
            measured.facts.num_bad,
            len(source.shards),
            measured.folder / "quarantine.jsonl",
        )


def _table(config: StageConfig, plan: Plan, rows: Sequence[Measured], steps: int) -> str:
    weights = [
        float(row.facts.num_samples if source.weight is None else source.weight)
        for source, row in zip(plan.sources, rows, strict=True)
    ]
    if config.run.epochs is not None:
        drawn = config.run.epochs * len_of(plan)
    else:
        # Windows are alike: the first says how many samples a step takes, without planning the others.
        window = plan.window(0)
        drawn = steps * len(window.drawn.samples) / len(window)
    table = [
        TableRow(source.name, row.facts, weight / sum(weights))
        for source, row, weight in zip(plan.sources, rows, weights, strict=True)
    ]
    return mixture_table(table, samples_drawn=drawn, other_stages=left_out(config))


def len_of(plan: Plan) -> int:
    """Samples of one epoch of the mixture."""
    return sum(len(source) for source in plan.sources)
