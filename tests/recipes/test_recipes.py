"""The recipes as a user runs them: pretrain -> SFT -> DPO (in full and by LoRA) -> evaluate, two steps each.

One long test, because each stage needs the one before. Three of the recipes run as commands of their own, the others
in this process, which saves ten seconds of imports each.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.config.load import CONFIG_DIR

ROOT = CONFIG_DIR.parent


def command(recipe: str, cwd: Path, *overrides: str) -> str:
    """Run a recipe as a user does; its output."""
    arguments = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def here(monkeypatch: pytest.MonkeyPatch, recipe: str, *overrides: str) -> None:
    """Run a recipe's command line in this process."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [f"{recipe}.py", *overrides])
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")


def assert_run_folder(folder: Path, stage: str, steps: int) -> None:
    """What every stage leaves."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["run"]["max_steps"] == steps
    assert config["model"]["demo_lm"]["hidden_size"] == 256, "defaults are written down too"
    assert json.loads((folder / "environment.json").read_text())["packages"]["transformers"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    publish.verify(folder / "final")
    assert {path.suffix for path in (folder / "final").iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}
    publish.verify(folder / "checkpoints" / f"checkpoint-{steps}")
    assert not list(folder.glob(".*")), f"{stage} left something half-made"


def assert_stock_loads(final: Path) -> None:
    model, report = Qwen2AudioForConditionalGeneration.from_pretrained(final, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(AutoProcessor.from_pretrained(final).tokenizer) == model.config.text_config.vocab_size


def test_three_stages_and_evaluation(workshop, tmp_path, monkeypatch):
    def settings(stage: str, start_from: Path | None, name: str = "") -> list[str]:
        given = workshop.overrides(stage, tmp_path / (name or stage), "checkpoint.every_steps=1", steps=2)
        given = [item for item in given if not item.startswith("model.start_from")]
        return [*given, f"model.start_from={start_from}" if start_from else "model=tiny"]

    pretrain = settings("pretrain", None)
    said = command("pretrain", tmp_path, *pretrain)
    assert "Done: " in said
    assert_run_folder(tmp_path / "pretrain", "pretrain", 2)
    assert_stock_loads(tmp_path / "pretrain" / "final")

    # Again: nothing is trained, and the command says why.
    before = (tmp_path / "pretrain" / "metrics.jsonl").read_bytes()
    here(monkeypatch, "pretrain", *pretrain)
    assert (tmp_path / "pretrain" / "metrics.jsonl").read_bytes() == before

    here(
        monkeypatch,
        "sft",
        *settings("sft", tmp_path / "pretrain" / "final"),
        "data.encode_once=true",
        "trainable=projector_llm",
    )
    assert_run_folder(tmp_path / "sft", "sft", 2)
    assert_stock_loads(tmp_path / "sft" / "final")

    here(monkeypatch, "dpo", *settings("dpo", tmp_path / "sft" / "final"))
    assert_run_folder(tmp_path / "dpo", "dpo", 2)
    assert_stock_loads(tmp_path / "dpo" / "final")

    said = command("dpo", tmp_path, *settings("dpo", tmp_path / "sft" / "final", "dpo_lora"), "adapter=lora")
    assert_run_folder(tmp_path / "dpo_lora", "dpo", 2)
    final = tmp_path / "dpo_lora" / "final"
    assert not (final / "model.safetensors").exists(), "an adapter is small"
    named = json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "sft" / "final")

    said = command(
        "evaluate", tmp_path, f"model.start_from={final}", "evaluation.form=chat", "evaluation.max_new_tokens=3",
        f"evaluation.pretrain_set={workshop.folder / 'pretrain'}", "evaluation.limit=4", "evaluation.name=tried",
        f"evaluation.preference_set={workshop.folder / 'dpo'}", f"evaluation.reference={tmp_path / 'sft' / 'final'}",
        f"evaluation.output={tmp_path / 'scores'}", "runtime.device=cpu",
    )  # fmt: skip
    assert "Scores of tried" in said
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["reward_margin"] != 0.0
    assert 0.0 <= scores["reward_accuracy"] <= 1.0
    assert set(scores["cer"]) == {"en", "fr"}
    lines = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert {line["question"] for line in lines} == {"transcribe", "translate", "language", "voice_chat"}


def test_a_finished_run_says_so(workshop, tmp_path, caplog):
    from qwen_audio_train.training.run import is_finished

    config = workshop.config("sft", tmp_path)
    assert not is_finished(config)
    (tmp_path / "final").mkdir()
    assert not is_finished(config), "a folder without its manifest is no result"
    (tmp_path / "final" / publish.MANIFEST).write_text("{}")
    assert is_finished(config)
    assert "is finished" in caplog.text
    assert "another run.dir" in caplog.text
