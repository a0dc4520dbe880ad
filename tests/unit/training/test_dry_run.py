"""What tools see of a stage is what its run would train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training.dry_run import dry_batches, tokenizer_source
from tests.stage_runs import STAGES, Workshop


@pytest.mark.parametrize("stage", STAGES)
def test_the_plan_is_the_runs_and_finds_the_lengths_that_were_kept(stage: str, workshop: Workshop, tmp_path: Path):
    cache = tmp_path / "cache"
    overrides = workshop.overrides(stage, tmp_path / "run", f"data.cache_dir={cache}")
    _, dry = dry_batches(stage, overrides)
    kept = sorted(cache.glob("lengths/*"))
    assert not (tmp_path / "run").exists()
    config = workshop.config(stage, tmp_path / "run", f"data.cache_dir={cache}")
    front = Front.of(load_processor(str(workshop.folder / "model")))
    batches = stage_batches(config, front, rank=0, world=1)
    assert (dry.plan.hash, dry.num_steps, dry.table) == (batches.plan.hash, batches.num_steps, batches.table)
    assert sorted(cache.glob("lengths/*")) == kept
    assert len(kept) == 1


def test_whole_weights_are_not_loaded_for_a_tokenizer(workshop: Workshop, tmp_path: Path):
    given = workshop.overrides("pretrain", tmp_path, "model=qwen2_audio_7b_from_parts", "model.start_from=null")
    with pytest.raises(ConfigError, match="--tokenizer"):
        dry_batches("pretrain", given)
    config = workshop.config("pretrain", tmp_path)
    assert tokenizer_source(config, None) == str(workshop.folder / "model")
    assert tokenizer_source(config, "elsewhere") == "elsewhere"


def test_a_model_from_parts_makes_its_tokenizer(workshop: Workshop, tmp_path: Path):
    given = workshop.overrides("pretrain", tmp_path, "model=tiny", "model.start_from=null")
    _, dry = dry_batches("pretrain", given)
    assert len(dry.plan.sources[0]) == 24
