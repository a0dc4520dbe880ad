"""Counting, writing and stopping; and what a batch carries across the process border."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.pipeline.quarantine import Failure, Limits, MicroBatch, Quarantine
from qwen_audio_train.samples import Origin

FAILURE = Failure("speech", "set", "a.tar", "k", 7, "checksum differs")


def batch(*usable: bool) -> MicroBatch:
    bad = [Failure("speech", "set", "a.tar", f"k{i}", i, "broken") for i, good in enumerate(usable) if not good]
    return MicroBatch({"input_ids": torch.zeros(1, 2)}, usable=usable, failures=bad)


def quarantine(folder, *, rank: int = 0, consecutive: int = 100, share: float = 1.0) -> Quarantine:
    return Quarantine(folder, Limits(consecutive, share), rank=rank)


def test_failures_are_written_with_all_that_finds_them(tmp_path):
    for rank in (0, 1):
        assert quarantine(tmp_path, rank=rank).note([MicroBatch(failures=[FAILURE], usable=[False])], step=3)[1] == 1
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    expected = {
        "source": "speech", "dataset": "set", "shard": "a.tar", "key": "k", "sample": 7, "reason": "checksum differs",
        "step": 3,
    }  # fmt: skip
    assert lines == [{**expected, "rank": 0}, {**expected, "rank": 1}]


def test_nothing_is_written_where_nothing_fails(tmp_path):
    assert quarantine(tmp_path).note([batch(True, True), batch()], step=1) == (2, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_failures_goes_on_over_batches_and_steps_and_stops_every_rank(tmp_path):
    one, other = quarantine(tmp_path, consecutive=3), quarantine(tmp_path, rank=1, consecutive=3)
    one.settle(*one.note([batch(True, False)], step=1))
    sums = one.note([batch(), batch(False, False, True)], step=2)
    assert sums == (3, 2, 1)
    for rank, told in ((one, "broken"), (other, "not on this rank")):
        with pytest.raises(ShardError, match=r"3 samples in a row, data\.max_bad_consecutive=3") as error:
            rank.settle(*sums)
        assert str(tmp_path / "quarantine.jsonl") in str(error.value)
        assert told in str(error.value)
        assert "check_shards" in str(error.value)


def test_a_good_sample_ends_a_row(tmp_path):
    kept = quarantine(tmp_path, consecutive=2)
    kept.settle(*kept.note([batch(False, True, False, True), batch(False)], step=1))
    assert kept.num_bad == 3


def test_a_share_is_taken_of_ten_thousand_samples_at_least(tmp_path):
    kept = quarantine(tmp_path, share=0.001)
    kept.settle(20, 10, 0)
    with pytest.raises(ShardError, match=r"11 of 40 samples read, data\.max_bad_share=0\.001"):
        kept.settle(20, 1, 0)
    long = quarantine(tmp_path, share=0.001)
    long.settle(100_000, 100, 0)
    with pytest.raises(ShardError, match="101 of"):
        long.settle(0, 1, 0)


def test_a_share_of_nothing_stops_at_the_first(tmp_path):
    with pytest.raises(ShardError):
        quarantine(tmp_path, share=0.0).settle(1_000_000, 1, 0)


def test_a_batch_crosses_processes_with_what_it_says_of_its_bin():
    sent = pickle.loads(pickle.dumps(batch(True, False)))
    assert sent.usable == (True, False)
    assert [failure.key for failure in sent.failures] == ["k1"]
    assert torch.equal(sent["input_ids"], torch.zeros(1, 2))


def test_an_error_without_an_origin_still_names_its_shard():
    known = Failure.of(SampleError(Origin("d", "s.tar", "k"), "why"), source="x", dataset="-", shard="-", sample=1)
    assert (known.dataset, known.shard, known.key, known.reason) == ("d", "s.tar", "k", "why")
    bare = Failure.of(OSError("stale handle"), source="x", dataset="d", shard="s.tar", sample=1)
    assert (bare.shard, bare.key, bare.reason) == ("s.tar", "", "OSError: stale handle")
