"""A stage's plan and batches without a run, for tools that look at them. Reads metadata only: no audio, no weights.

The run's own folder is neither read nor written. Lengths that are measured stay in ``data.cache_dir`` for the run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace

from qwen_audio_train.config.load import compose
from qwen_audio_train.config.model import ModelSize
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.load import load_tokenizer
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training.initial_model import initial_model
from qwen_audio_train.training.runtime import Ranks

STAGES = ("pretrain", "sft", "dpo")
BUILT_FOR_A_TOKENIZER = (ModelSize.tiny, ModelSize.demo)
ANY_MEL_BINS = 128
"""Nothing is featurised."""


def dry_batches(
    stage: str, overrides: Sequence[str], tokenizer: str | None = None
) -> tuple[StageConfig, PlannedBatches]:
    """What a recipe with these settings would train on, as one rank of one; an epoch where no length of run is given.

    Args:
        stage: one of ``STAGES``.
        overrides: settings as the recipe takes them; ``run.dir`` need not be there.
        tokenizer: model folder or hub id whose tokenizer is used in place of the run's.

    Raises:
        ConfigError: settings, sets or tokenizer cannot be used.
        ShardError: a set, or too many of its samples, cannot be used.
    """
    given = list(overrides)
    if not any(text.startswith(("run.max_steps=", "run.epochs=", "experiment=")) for text in given):
        given.append("run.epochs=1")
    with tempfile.TemporaryDirectory() as run_dir:
        config: StageConfig = compose(stage, [*given, f"run.dir={run_dir}"])
        if not sys.stderr.isatty():
            config = replace(config, tracking=replace(config.tracking, progress_bar=False))
        # Encoded clips have the lengths of the audio they stand for: nothing is encoded here.
        front = Front(load_tokenizer(tokenizer_source(config, tokenizer)), ANY_MEL_BINS)
        return config, stage_batches(config, front, rank=0, world=1)


def tokenizer_source(config: StageConfig, tokenizer: str | None) -> str:
    """Folder or hub id that the tokenizer comes from. Small models are built to have one; big ones are not loaded.

    Raises:
        ConfigError: whole weights would have to be loaded.
    """
    if tokenizer is not None:
        return tokenizer
    if config.model.start_from is not None:
        return config.model.start_from
    size = config.model.size
    if size not in BUILT_FOR_A_TOKENIZER and size is not ModelSize.qwen2_audio_7b:
        raise ConfigError(
            f"model.size={size.value} would be built from whole weights only to get its tokenizer: name one with "
            "--tokenizer, for instance --tokenizer Qwen/Qwen2-Audio-7B"
        )
    return initial_model(config, Ranks(rank=0, world=1, uses_cpu=True))
