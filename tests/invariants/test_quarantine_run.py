"""Bad samples in a real run: counted in the metrics, listed, and stopping it at a step's boundary."""

from __future__ import annotations

import json

import pytest

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.tracking.writer import read_metrics
from tests import sets


def damage(folder, numbers):
    """Flip a byte of each of these samples' clips."""
    shards = ShardSet.open(folder)
    for number in numbers:
        (clip,) = shards.clips(number)
        with clip.shard_path.open("r+b") as file:
            file.seek(clip.offset_bytes + clip.num_bytes // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return folder


@pytest.fixture
def damaged(tmp_path):
    """A set in which two samples cannot be used."""
    return damage(sets.pretrain_set(tmp_path / "set"), (7, 8))


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


def test_a_row_of_bad_samples_stops_a_run_and_one_less_does_not(workshop, tmp_path):
    """Half of a set is damaged: the rows, over bins and steps, are known from the plan."""
    bad = range(6, 18)
    folder = damage(sets.pretrain_set(tmp_path / "set"), bad)
    shared = (f"data.train={folder}", "trainable=all", "data.max_bad_share=1")

    def config(name, limit):
        return workshop.config("pretrain", tmp_path / name, *shared, f"data.max_bad_consecutive={limit}", steps=5)

    plan = workshop.trainer("pretrain", config("plan", 1)).batches
    row, rows = 0, []
    for planned in plan.bins():
        for sample in planned.samples.tolist():
            row = row + 1 if sample in bad else 0
            rows.append(row)
    longest = max(rows)
    assert longest > max(sum(sample in bad for sample in planned.samples) for planned in plan.bins()), "over bins"
    workshop.train("pretrain", config("goes on", longest + 1))
    with pytest.raises(ShardError, match=rf"{longest} samples in a row, data\.max_bad_consecutive={longest}"):
        workshop.train("pretrain", config("stops", longest))


def test_the_counts_of_a_share_begin_anew_with_a_process(workshop, damaged, tmp_path):
    """A run that goes on is not stopped by what was told and accepted before; it writes its lines behind the old."""
    overrides = (f"data.train={damaged}", "trainable=all", "checkpoint.every_steps=2")
    workshop.train("pretrain", workshop.config("pretrain", tmp_path / "run", *overrides, steps=6))
    before = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    config = workshop.config("pretrain", tmp_path / "run", *overrides, steps=10)
    trainer = workshop.trainer("pretrain", config)
    workshop.train("pretrain", config, trainer)
    after = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert before
    assert after[: len(before)] == before
    assert trainer.batches.quarantine.num_bad == len(after) - len(before)
    assert all(json.loads(line)["step"] > 6 for line in after[len(before) :])
