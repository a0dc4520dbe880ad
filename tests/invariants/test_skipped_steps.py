"""A step whose loss or gradient is no number, or whose loss is a spike, leaves no trace but its lines: weights, Adam's
moments and counts, and the schedule are those of a run that never met it."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from qwen_audio_train.errors import DivergedError
from qwen_audio_train.tracking.writer import read_metrics
from qwen_audio_train.training.trainer import LikelihoodTrainer
from tests.recipes.faulty import break_steps

CONSTANT = ("trainable=all", "optim.final_learning_rate_ratio=1.0")
SPIKES = ("optim.spike_factor=3.0", "optim.spike_window_steps=4")


@pytest.fixture
def broken(monkeypatch):
    """Breaks steps for the length of a test."""
    monkeypatch.setattr(LikelihoodTrainer, "compute_loss", LikelihoodTrainer.compute_loss)
    return break_steps


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(workshop, folder, *overrides, steps):
    config = workshop.config("pretrain", folder, *overrides, steps=steps)
    return workshop.train("pretrain", config)


def assert_same_state(one, other):
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    moments, others = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert moments.keys() == others.keys()
    for number, kept in moments.items():
        assert all(torch.equal(kept[name], others[number][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("kind", ["loss", "gradient", "spike"])
def test_a_left_out_step_changes_nothing(workshop, tmp_path, broken, kind):
    never_met = train(workshop, tmp_path / "never", *CONSTANT, *SPIKES, "data.skip_steps=[[3,3]]", steps=6)
    broken(f"{kind}:0:4")
    met = train(workshop, tmp_path / "met", *CONSTANT, *SPIKES, steps=7)
    assert_same_state(met, never_met)
    assert met.lr_scheduler.last_epoch == never_met.lr_scheduler.last_epoch == 6
    losses = [line["loss"] for line in read_metrics(tmp_path / "met")]
    assert losses == [line["loss"] for line in read_metrics(tmp_path / "never")], "and its loss is in no mean"
    assert [line["step"] for line in read_metrics(tmp_path / "met")] == [1, 2, 3, 5, 6, 7]
    assert read_metrics(tmp_path / "met")[-1]["skipped_steps"] == 1


@pytest.mark.parametrize("kind", ["loss", "gradient", "spike"])
def test_the_samples_of_a_left_out_step_are_written_down_by_key(workshop, tmp_path, broken, kind):
    broken(f"{kind}:0:4")
    config = workshop.config("pretrain", tmp_path, *CONSTANT, *SPIKES, steps=5)
    trainer = workshop.trainer("pretrain", config)
    bins = list(trainer.batches.bins())
    workshop.train("pretrain", config, trainer)
    # Of a step of two bins the first has a loss that is no number; else nobody can tell which bin it was.
    suspects = bins[6:7] if kind == "loss" else bins[6:8]
    written = lines(tmp_path / ("spikes.jsonl" if kind == "spike" else "nonfinite.jsonl"))
    assert [line["key"] for line in written] == [f"p-{sample}" for planned in suspects for sample in planned.samples]
    assert {(line["step"], line["plan_step"], line["rank"], line["why"]) for line in written} == {(4, 3, 0, kind)}
    assert {line["dataset"] for line in written} == {"pretrain"}
    assert all(line["shard"].endswith(".tar") for line in written)
    assert {line["micro_batch_loss"] == "nan" for line in written} == {kind == "loss"}


def test_a_mean_over_several_steps_is_of_the_applied_ones(workshop, tmp_path, broken):
    every = ("tracking.log_every_steps=3",)
    whole = train(workshop, tmp_path / "whole", *CONSTANT, steps=6)
    assert whole.guard.num_skipped == 0
    single = [line["loss"] for line in read_metrics(tmp_path / "whole")]
    broken("loss:0:3")
    train(workshop, tmp_path / "met", *CONSTANT, *every, steps=3)
    assert [line["loss"] for line in read_metrics(tmp_path / "met")][-1] == pytest.approx(single[1], rel=1e-6)
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path / "met"))


def test_spikes_are_looked_for_only_when_asked(workshop, tmp_path, broken):
    broken("spike:0:4")
    assert train(workshop, tmp_path, *CONSTANT, steps=5).guard.num_skipped == 0
    assert not (tmp_path / "spikes.jsonl").exists()


@pytest.mark.parametrize("limit", ["optim.max_skipped_consecutive=2", "optim.max_skipped_share=0.001"])
def test_too_many_stop_the_run_at_the_last_good_checkpoint(workshop, tmp_path, broken, limit):
    broken("loss:0:4,5,6,7,8")
    overrides = (*CONSTANT, limit, "checkpoint.every_steps=2")
    with pytest.raises(DivergedError) as report:
        train(workshop, tmp_path, *overrides, steps=9)
    told = str(report.value)
    assert limit in told
    assert "Last good checkpoint: checkpoint-4" in told
    assert "data.skip_steps=[[3,4]]" in told
    assert str(tmp_path / "nonfinite.jsonl") in told
    assert "sample 'p-" in told
    assert {line["step"] for line in lines(tmp_path / "nonfinite.jsonl")} == {4, 5}


def test_counts_and_the_median_survive_a_resume(workshop, tmp_path, broken):
    """Bit for bit: the resumed run leaves out the same step by the same median, and stops by the same count."""
    overrides = (*CONSTANT, *SPIKES, "checkpoint.every_steps=5", "optim.max_skipped_share=0.002")
    broken("spike:0:4,7")
    whole = train(workshop, tmp_path / "whole", *overrides, steps=9)
    assert whole.guard.num_skipped == 2
    train(workshop, tmp_path / "part", *overrides, steps=9)
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "checkpoint-9")
    (tmp_path / "part" / "spikes.jsonl").unlink()
    resumed = train(workshop, tmp_path / "part", *overrides, steps=9)
    assert resumed.guard.recent == whole.guard.recent
    assert resumed.guard.num_skipped == 2
    assert {line["step"] for line in lines(tmp_path / "part" / "spikes.jsonl")} == {7}
    assert_same_state(resumed, whole)
