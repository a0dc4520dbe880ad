"""metrics.jsonl and wandb."""

from __future__ import annotations

import json
import sys

import pytest

from qwen_audio_train.config.tracking import TrackingConfig, WandbMode
from qwen_audio_train.tracking.metrics import METRIC_NAMES
from qwen_audio_train.tracking.run_folder import describe_environment
from qwen_audio_train.tracking.writer import METRICS_FILE, MetricWriter, read_metrics

DISABLED = TrackingConfig(wandb=WandbMode.disabled)


def write(folder, steps, start_step=0, tracking=DISABLED, value=1.0):
    writer = MetricWriter(folder, tracking, config={"run": {"seed": 0}}, start_step=start_step)
    for step in steps:
        writer.write(step, {"loss": value})
    writer.close()


def test_lines_can_be_read_back(tmp_path):
    assert read_metrics(tmp_path) == []
    write(tmp_path, [1, 2])
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0)]


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, [5, 6, 7], start_step=4, value=2.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0), (7, 2.0),
    ]  # fmt: skip


def test_a_line_cut_short_by_a_kill_is_dropped_too(tmp_path):
    write(tmp_path, [1, 2])
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, [3], start_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_lines_are_there_before_the_writer_is_closed(tmp_path):
    writer = MetricWriter(tmp_path, DISABLED, config={}, start_step=0)
    writer.write(1, {"loss": 3.0})
    assert len(read_metrics(tmp_path)) == 1
    writer.close()


def test_wandb_switched_off_is_neither_imported_nor_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    write(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_wandb_offline_writes_under_the_run_folder(tmp_path):
    pytest.importorskip("wandb")
    write(tmp_path, [1, 2], tracking=TrackingConfig(wandb=WandbMode.offline))
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_every_number_that_a_run_writes_is_documented(workshop, tmp_path, stage):
    workshop.train(stage, workshop.config(stage, tmp_path, steps=2))
    lines = read_metrics(tmp_path)
    assert len(lines) == 2
    written = {name for line in lines for name in line} - {"step", "time"}
    assert written <= METRIC_NAMES.keys()
    expected = {"loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second", "padding"}
    expected |= {"pairs", "rewards/margins"} if stage == "dpo" else {"supervised_tokens"}
    assert expected <= written


def test_environment_names_versions(monkeypatch):
    described = describe_environment()
    assert described["packages"]["torch"]
    json.dumps(described)
