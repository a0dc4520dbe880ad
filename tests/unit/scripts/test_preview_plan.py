"""The preview says what the run will do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.training.dry_run import dry_batches
from scripts.preview_plan import main, preview
from tests.stage_runs import Workshop


def arguments(workshop: Workshop, stage: str, run_dir: Path, *more: str) -> list[str]:
    return [stage, *workshop.overrides(stage, run_dir), *more]


@pytest.fixture
def numbers(workshop: Workshop, tmp_path: Path) -> dict:
    made = tmp_path / "preview.json"
    assert main(arguments(workshop, "pretrain", tmp_path / "run", "--json", str(made), "--tokens", "1e5")) == 0
    return json.loads(made.read_text())


def test_numbers_are_those_of_the_runs_batches(numbers: dict, workshop: Workshop, tmp_path: Path) -> None:
    config = workshop.config("pretrain", tmp_path / "other")
    front = Front.of(load_processor(str(workshop.folder / "model")))
    batches = stage_batches(config, front, rank=0, world=1)
    assert numbers["steps"] == batches.plan.steps_in_epoch(0)
    steps = [batches.plan.step(index) for index in range(numbers["steps"])]
    assert numbers["samples"] == sum(len(bin_) for step in steps for bin_ in step.bins) == 24
    lengths = batches.plan.sources[0].lengths
    assert numbers["llm_tokens"] == int(lengths.llm_tokens.sum())
    assert numbers["supervised_tokens"] == int(lengths.supervised_tokens.sum())
    seconds = ShardSet.open(workshop.folder / "pretrain").description["seconds"]
    assert numbers["hours"] == pytest.approx(seconds / 3600, rel=0.02)  # whole frames of 20 ms
    assert numbers["imbalance"] >= 1
    assert 0 <= numbers["token_padding_share"] < 1


def test_a_token_budget_becomes_epochs_and_steps(numbers: dict) -> None:
    budget = numbers["token_budget"]
    assert budget["epochs"] == pytest.approx(1e5 / numbers["llm_tokens"])
    assert budget["steps"] == round(budget["epochs"] * numbers["steps"])


def test_the_runs_folder_is_not_touched(numbers: dict, tmp_path: Path) -> None:
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_other_stages_and_the_table(stage: str, workshop: Workshop, tmp_path: Path, capsys) -> None:
    assert main(arguments(workshop, stage, tmp_path / "run")) == 0
    shown = capsys.readouterr().out
    for word in ("hours of audio", "encoder frame padding", "slowest / mean rank", "supervised", "100.00%"):
        assert word in shown


def test_the_picture_is_a_png(workshop: Workshop, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    assert main(arguments(workshop, "pretrain", tmp_path / "run", "--picture", str(picture))) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 10_000


def test_the_picture_shows_every_window_once(workshop: Workshop, tmp_path: Path) -> None:
    config, batches = dry_batches("pretrain", workshop.overrides("pretrain", tmp_path))
    plan = batches.plan
    made, fill = preview(config, batches, epoch=0)
    assert len(fill.tokens) == len(plan.windows_of(0)) > 1
    computed = float(np.concatenate(fill.tokens).sum()) * plan.budget.llm_tokens
    assert computed == pytest.approx(made.llm_tokens / (1 - made.token_padding_share))


def test_run_length_need_not_be_given(workshop: Workshop, tmp_path: Path, capsys) -> None:
    given = [text for text in workshop.overrides("pretrain", tmp_path) if not text.startswith("run.")]
    assert main(["pretrain", *given]) == 0
    assert "1.00" in capsys.readouterr().out


def test_mistakes_are_sentences(workshop: Workshop, tmp_path: Path, capsys) -> None:
    assert main(arguments(workshop, "pretrain", tmp_path, "data.train=/nowhere")) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert main(arguments(workshop, "pretrain", tmp_path, "data.trian=x")) == 2
    assert "trian" in capsys.readouterr().err
    assert main(arguments(workshop, "pretrain", tmp_path, "--tokenizer", str(tmp_path))) == 2
    assert "no tokenizer that can be loaded" in capsys.readouterr().err
    for option in (["--tokens", "0"], ["--epoch", "-1"]):
        with pytest.raises(SystemExit):
            main(["pretrain", *option])


def test_options_may_stand_anywhere(workshop: Workshop, tmp_path: Path, capsys) -> None:
    assert main(["--tokens", "100", *arguments(workshop, "pretrain", tmp_path)]) == 0
    assert main(["pretrain", "--tokens", "100", *workshop.overrides("pretrain", tmp_path)]) == 0
    assert "100 tokens are" in capsys.readouterr().out
