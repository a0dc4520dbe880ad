"""A run that was stopped and goes on is bit for bit the run that was not: losses, samples, weights. Dropout is on, so
that the state of the random generators matters too."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from qwen_audio_train.checkpoint import manifest
from qwen_audio_train.errors import CheckpointError, ConfigError, PreemptedError
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.tracking.writer import read_metrics
from qwen_audio_train.training import resuming
from qwen_audio_train.training.run import checkpoint_to_resume
from qwen_audio_train.training.runtime import Ranks

STEPS = 6
ALONE = Ranks(rank=0, world=1, uses_cpu=True)
# The preference loss switches dropout off by default; here it is wanted.
OVERRIDES = {
    "pretrain": ("trainable=all", "data.num_wordings=4"),
    "sft": ("adapter=lora", "adapter.dropout=0.3"),
    "dpo": ("preference.disable_dropout=false",),
}
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "supervised_tokens", "pairs", "rewards/margins", "epoch")


@dataclass
class Run:
    """What a run did, as far as it must be repeatable."""

    folder: Path
    lines: list[dict[str, float]]
    samples: list[list[Any]]
    weights: dict[str, torch.Tensor]


class Recorder:
    """Runs stages and writes down which samples their batches hold."""

    def __init__(self, workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workshop = workshop
        self.samples: list[list[Any]] = []
        build = BatchBuilder.build

        def recording(builder: BatchBuilder, draws: Any) -> Any:
            self.samples.append(list(draws))
            return build(builder, draws)

        monkeypatch.setattr(BatchBuilder, "build", recording)

    def config(self, stage: str, folder: Path, *overrides: str) -> Any:
        own = ("checkpoint.every_steps=2", "checkpoint.keep_last=9", *OVERRIDES[stage], *overrides)
        return self.workshop.config(stage, folder, *own, model="dropout", steps=STEPS)

    def run(self, stage: str, folder: Path, callback: TrainerCallback | None = None, *overrides: str) -> Run:
        self.samples.clear()
        config = self.config(stage, folder, *overrides)
        trainer = self.workshop.trainer(stage, config)
        if callback is not None:
            trainer.add_callback(callback)
        self.workshop.train(stage, config, trainer)
        lines = [{name: line[name] for name in COMPARED if name in line} for line in read_metrics(folder)]
        weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        return Run(folder, lines, list(self.samples), weights)


@pytest.fixture
def recorder(workshop, monkeypatch) -> Recorder:
    return Recorder(workshop, monkeypatch)


@pytest.fixture(scope="module")
def unbroken(workshop, tmp_path_factory) -> Any:
    """The unbroken run of each stage, made when first asked for."""
    made: dict[str, Run] = {}

    def get(stage: str) -> Run:
        if stage not in made:
            with pytest.MonkeyPatch.context() as patch:
                made[stage] = Recorder(workshop, patch).run(stage, tmp_path_factory.mktemp("unbroken"))
        return made[stage]

    return get


def broken_after(run: Run, step: int, folder: Path) -> Path:
    """The run's folder as a kill some time after ``step`` leaves it: later checkpoints were never made."""
    shutil.copytree(run.folder, folder)
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)
    return folder


def assert_goes_on_alike(whole: Run, resumed: Run, step: int) -> None:
    bins_per_step = len(whole.samples) // STEPS
    assert resumed.samples == whole.samples[step * bins_per_step :]
    assert resumed.lines == whole.lines
    assert [line["step"] for line in resumed.lines] == list(range(1, STEPS + 1))
    assert resumed.weights.keys() == whole.weights.keys()
    different = [name for name, tensor in whole.weights.items() if not torch.equal(tensor, resumed.weights[name])]
    assert different == []


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(recorder, unbroken, tmp_path, stage):
    whole = unbroken(stage)
    folder = broken_after(whole, 4, tmp_path / "broken")
    assert_goes_on_alike(whole, recorder.run(stage, folder), 4)


def of_nine(run: Run, *steps: int) -> list[list[Any]]:
    """Samples of some steps of a run of nine."""
    bins = len(run.samples) // 9
    return [samples for step in steps for samples in run.samples[step * bins : (step + 1) * bins]]


def test_a_run_that_leaves_steps_out_resumes_to_the_same_steps(recorder, tmp_path):
    """Before, inside and behind the gap: after 2 steps of 6 the next two of the plan are left out."""
    skips = "data.skip_steps=[[1,1],[3,4]]"
    whole = recorder.run("sft", tmp_path / "whole", None, skips)
    plain = recorder.run("sft", tmp_path / "plain", None, "run.max_steps=9")
    assert whole.samples == of_nine(plain, 0, 2, 5, 6, 7, 8)
    for taken in (2, 4):
        folder = broken_after(whole, taken, tmp_path / f"after-{taken}")
        assert_goes_on_alike(whole, recorder.run("sft", folder, None, skips), taken)


def test_steps_can_be_left_out_from_a_resume_on(recorder, unbroken, tmp_path):
    """The checkpoint after step 2 knows of no gap; the one after step 4 stands behind it."""
    plain = recorder.run("sft", tmp_path / "plain", None, "run.max_steps=9")
    folder = broken_after(unbroken("sft"), 2, tmp_path / "broken")
    skips = "data.skip_steps=[[3,5]]"
    resumed = recorder.run("sft", folder, None, skips)
    assert resumed.samples == of_nine(plain, 2, 6, 7, 8)
    again = recorder.run("sft", broken_after(resumed, 4, tmp_path / "again"), None, skips)
    assert again.samples == of_nine(plain, 7, 8)
    assert again.lines == resumed.lines


def test_dropout_makes_a_run_depend_on_its_random_state(recorder, unbroken, tmp_path, monkeypatch):
    """Otherwise the test above could not see a generator that was not restored."""
    whole = unbroken("pretrain")
    folder = broken_after(whole, 4, tmp_path / "broken")
    monkeypatch.setattr("transformers.Trainer._load_rng_state", lambda self, checkpoint: None)
    assert recorder.run("pretrain", folder).lines[4:] != whole.lines[4:]


class InterruptAt(TrainerCallback):
    """A Ctrl-C while this step runs."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("stage", "number", "raised"),
    [
        ("pretrain", signal.SIGINT, KeyboardInterrupt),
        ("dpo", signal.SIGTERM, PreemptedError),
        ("sft", signal.SIGUSR1, PreemptedError),
    ],
)
def test_a_signal_stops_at_a_step_with_a_checkpoint_and_the_run_goes_on_from_it(
    recorder, unbroken, tmp_path, stage, number, raised
):
    handler = signal.getsignal(number)
    with pytest.raises(raised):
        recorder.run(stage, tmp_path, InterruptAt(2, number))
    assert signal.getsignal(number) is handler, "the handler is handed back"
    # Ranks agree when the next step's items are counted, so one more step is taken.
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("*-*"))] == ["checkpoint-2", "checkpoint-3"]
    assert_goes_on_alike(unbroken(stage), recorder.run(stage, tmp_path), 3)


def test_damaged_and_unfinished_checkpoints_are_passed_over_with_a_warning(recorder, unbroken, tmp_path, caplog):
    whole = unbroken("sft")
    folder = broken_after(whole, 4, tmp_path / "broken")
    checkpoints = folder / "checkpoints"
    flipped = checkpoints / "checkpoint-4" / "adapter_model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    unfinished = checkpoints / ".step-5.inprogress"
    shutil.copytree(checkpoints / "checkpoint-2", unfinished / "checkpoint-5")
    with caplog.at_level(logging.WARNING):
        resumed = recorder.run("sft", folder)
    assert "the bytes of adapter_model.safetensors differ from the manifest" in caplog.text
    assert f"Resuming from {checkpoints / 'checkpoint-2'}" in caplog.text
    assert_goes_on_alike(whole, resumed, 2)
    assert not unfinished.exists()
    assert flipped.read_bytes() != bytes(content), "the step was taken and saved again"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.seed=7", "seed was 0, is 7"),
        ("batching.llm_tokens_per_bin=300", "budget.llm_tokens was 256, is 300"),
        ("batching.bins_per_step=1", "budget.bins_per_step was 2, is 1"),
    ],
)
def test_resuming_another_plan_is_refused_with_what_changed(recorder, unbroken, tmp_path, override, says):
    folder = broken_after(unbroken("sft"), 4, tmp_path / "broken")
    config = recorder.config("sft", folder, override)
    trainer = recorder.workshop.trainer("sft", config)
    with pytest.raises(CheckpointError, match=says):
        checkpoint_to_resume(config, trainer, ALONE)


def test_other_versions_are_named(recorder, unbroken, tmp_path, caplog, monkeypatch):
    folder = broken_after(unbroken("sft"), 4, tmp_path / "broken")
    config = recorder.config("sft", folder)
    trainer = recorder.workshop.trainer("sft", config)
    was = resuming.installed_packages()
    monkeypatch.setattr(resuming, "installed_packages", lambda: {**was, "torch": "99.0"})
    with caplog.at_level(logging.WARNING):
        checkpoint_to_resume(config, trainer, ALONE)
    assert f"was written with other versions: torch was {was['torch']}, is 99.0" in caplog.text


def test_a_checkpoint_holds_all_that_a_run_is(unbroken):
    """What docs/checkpoints.md lists."""
    folder = unbroken("pretrain").folder / "checkpoints" / "checkpoint-4"
    listed = manifest.verify(folder)
    assert {"config.yaml", "environment.json", "position.json", "trainer_state.json"} <= listed.files.keys()
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= listed.files.keys()
    assert listed.facts == {"step": 4, "world": 1, "zero_stage": None}
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history] == [1, 2, 3, 4]
    assert not (folder / "training_args.bin").exists(), "a pickle"
    assert any(line.get("checkpoint_seconds", 0) > 0 for line in history)


def test_resuming_can_be_forbidden(recorder, unbroken, tmp_path):
    folder = broken_after(unbroken("sft"), 4, tmp_path / "broken")
    config = recorder.config("sft", folder, "checkpoint.resume=false")
    trainer = recorder.workshop.trainer("sft", config)
    with pytest.raises(ConfigError, match=r"checkpoint\.resume=false, but .*checkpoint-4 exists"):
        checkpoint_to_resume(config, trainer, ALONE)


def test_a_run_killed_before_its_result_was_saved_takes_no_further_step(recorder, unbroken, tmp_path):
    whole = unbroken("pretrain")
    shutil.copytree(whole.folder, tmp_path / "broken")
    assert_goes_on_alike(whole, recorder.run("pretrain", tmp_path / "broken"), STEPS)
