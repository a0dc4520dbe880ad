"""Bad samples in a real run: counted in the metrics, listed, and stopping it at a step's boundary."""

from __future__ import annotations

import json

import pytest

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.tracking.writer import read_metrics
from tests import sets


@pytest.fixture
def damaged(tmp_path):
    """A set in which a byte of two samples' clips is flipped."""
    folder = sets.pretrain_set(tmp_path / "set")
    shards = ShardSet.open(folder)
    for number in (7, 8):
        (clip,) = shards.clips(number)
        with clip.shard_path.open("r+b") as file:
            file.seek(clip.offset_bytes + clip.num_bytes // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return folder


def test_a_run_goes_on_without_bad_samples_and_tells_of_them(workshop, damaged, tmp_path):
    config = workshop.config("pretrain", tmp_path / "run", f"data.train={damaged}", "trainable=all", steps=10)
    workshop.train("pretrain", config)
    lines = read_metrics(tmp_path / "run")
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert lines[-1]["quarantined_samples"] == len(listed) >= 2
    assert {line["key"] for line in listed} == {"p-7", "p-8"}
    assert {line["rank"] for line in listed} == {0}
    assert all(1 <= line["step"] <= 10 for line in listed)
    assert all(line["loss"] == line["loss"] for line in lines), "no NaN"
    assert "train" in (tmp_path / "run" / "mixture.txt").read_text()


def test_limits_stop_a_run_before_the_step_is_taken(workshop, damaged, tmp_path):
    overrides = (f"data.train={damaged}", "trainable=all", "data.max_bad_share=0")
    config = workshop.config("pretrain", tmp_path / "run", *overrides, steps=10)
    trainer = workshop.trainer("pretrain", config)
    with pytest.raises(ShardError, match=r"data\.max_bad_share=0.*\n.*'p-[78]'.*checksum"):
        workshop.train("pretrain", config, trainer)
    first = json.loads((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()[0])
    assert trainer.state.global_step == first["step"] - 1
