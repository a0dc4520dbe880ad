"""metrics.jsonl and wandb."""

from __future__ import annotations

import json
import re
import sys

import pytest
from transformers import AutoConfig

from qwen_audio_train.config.load import CONFIG_DIR
from qwen_audio_train.config.tracking import TrackingConfig, WandbMode
from qwen_audio_train.model.flops import ModelShape, Part, forward_flops
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.samples import BatchSizes
from qwen_audio_train.tracking.metrics import METRIC_NAMES
from qwen_audio_train.tracking.run_folder import describe_environment
from qwen_audio_train.tracking.writer import METRICS_FILE, MetricWriter, read_metrics
from tests.stage_runs import STAGES

DISABLED = TrackingConfig(wandb=WandbMode.disabled)
SIZES = BatchSizes(3, 18, 20, 90, 30, 40, 500, 15)
ONLY_DPO = {"pairs", "entropy", "mean_token_accuracy"}


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


@pytest.fixture(scope="module")
def lines_of_stages(workshop, tmp_path_factory):
    """The lines of a short run of each stage, whose batches have sizes."""
    build = BatchBuilder.build

    def measured(builder, draws):
        batch = build(builder, draws)
        batch.sizes = SIZES
        return batch

    lines = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchBuilder, "build", measured)
        for stage in STAGES:
            folder = tmp_path_factory.mktemp(stage)
            settings = ("trainable=all", "tracking.peak_tflops=0.5", "checkpoint.every_steps=1")
            workshop.train(stage, workshop.config(stage, folder, *settings, steps=2))
            lines[stage] = read_metrics(folder)
    return lines


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_that_a_run_writes_is_documented(lines_of_stages, stage):
    lines = lines_of_stages[stage]
    assert len(lines) == 2
    written = {name for line in lines for name in line} - {"step", "time"}
    assert written <= METRIC_NAMES.keys()
    expected = {name for name in METRIC_NAMES if "/" not in name} - ONLY_DPO - {"peak_device_memory_gib"}
    expected -= {"supervised_tokens"} if stage == "dpo" else set()
    assert expected <= written


def test_every_documented_number_is_written_by_some_stage(lines_of_stages):
    written = {name for lines in lines_of_stages.values() for line in lines for name in line}
    assert METRIC_NAMES.keys() - written == {"peak_device_memory_gib"}


def test_the_page_of_metrics_has_every_name_and_no_other():
    page = (CONFIG_DIR.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == METRIC_NAMES.keys() | {"step", "time"}


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_of_a_step_hang_together(lines_of_stages, workshop, stage):
    forward = forward_flops(ModelShape.of(AutoConfig.from_pretrained(workshop.folder / "model")), SIZES + SIZES)
    whole = sum(products.total for products in forward.values())
    # Mels need no gradient; DPO runs its reference once.
    teraflops = (3 * whole - forward[Part.conv1].total + whole * (stage == "dpo")) / 1e12
    for line in lines_of_stages[stage]:
        assert line["llm_padding"] == pytest.approx(0.1)
        assert line["encoder_padding"] == pytest.approx(0.25)
        tokens = line["tokens_per_second"] * line["step_seconds"]
        assert tokens == pytest.approx(2 * 18), "two bins a step"
        assert line["audio_seconds_per_second"] * line["step_seconds"] == pytest.approx(2 * 15 * 0.04)
        assert line["data_seconds"] + line["compute_seconds"] == pytest.approx(line["step_seconds"])
        assert 0 < line["data_wait_share"] < 1
        assert line["model_flops_utilisation"] == pytest.approx(line["model_tflops_per_second"] / 0.5)
        assert line["model_tflops_per_second"] * line["step_seconds"] == pytest.approx(teraflops, rel=1e-6)
    assert [("checkpoint_seconds" in line) for line in lines_of_stages[stage]] == [False, True]


def test_environment_names_versions(monkeypatch):
    described = describe_environment()
    assert described["packages"]["torch"]
    json.dumps(described)
