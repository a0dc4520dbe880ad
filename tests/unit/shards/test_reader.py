from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.decode import decode_audio
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import ChatRecord, PreferenceRecord, PretrainRecord
from qwen_audio_train.shards import reader
from qwen_audio_train.shards.index import build_index
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.shards.conftest import flac, write_toy_set


def test_round_trip(toy_set: ShardSet) -> None:
    assert len(toy_set) == 6
    for number in range(4):
        record = toy_set.record(number)
        assert isinstance(record, PretrainRecord)
        assert (record.text, record.task, record.origin.key) == (f"text {number}", "transcribe", f"en/clip_{number}")
        samples = toy_set.read_clip(record.clips[0], record.origin)
        np.testing.assert_array_equal(samples, decode_audio(flac(1000 + number, number), "flac"))
    chat, pair = toy_set.record(4), toy_set.record(5)
    assert isinstance(chat, ChatRecord)
    assert [clip.num_samples for clip in chat.clips] == [2000, 3001]
    assert isinstance(pair, PreferenceRecord)
    assert (pair.chosen, pair.rejected) == ("right", "wrong")
    assert pair.extra == {"judge": "rule", "score": 0.5}
    assert pair.license == "CC0-1.0"
    with pytest.raises(IndexError):
        toy_set.record(6)


def test_lengths_come_from_the_index_alone(toy_set: ShardSet) -> None:
    first, num_samples = toy_set.clip_lengths()
    assert first.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert num_samples.tolist() == [1000, 1001, 1002, 1003, 2000, 3001, 4000]


def test_ten_clips_keep_their_order(tmp_path: Path) -> None:
    """Suffixes sort as text (10 before 2); clips must not."""
    content = [*({"type": "audio"} for _ in range(12)), {"type": "text", "text": "which?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "none"}]
    with reader_writer(tmp_path) as writer:
        clips = [(flac(1000 + number), "flac") for number in range(12)]
        writer.write("many", clips, {"messages": turns, "source": "toy"})
    shards = ShardSet.open(tmp_path)
    record = shards.record(0)
    lengths = [len(shards.read_clip(clip, record.origin)) for clip in record.clips]
    assert lengths == list(range(1000, 1012))


def reader_writer(directory: Path):
    from qwen_audio_train.shards.writer import ShardWriter

    return ShardWriter(directory, "toy", split="train", license="CC0-1.0")


def test_opens_by_folder_or_description_with_one_fingerprint(tmp_path: Path) -> None:
    write_toy_set(tmp_path / "a")
    write_toy_set(tmp_path / "b", num_samples=7)
    first = ShardSet.open(tmp_path / "a")
    assert ShardSet.open(str(tmp_path / "a" / "dataset.json")).fingerprint == first.fingerprint
    assert ShardSet.open(tmp_path / "b").fingerprint != first.fingerprint


def test_pickles_small_and_reads_on(toy_set: ShardSet) -> None:
    toy_set.record(0)
    data = pickle.dumps(toy_set)
    copy = pickle.loads(data)
    assert len(data) < 5000
    assert copy.record(5).origin == toy_set.record(5).origin
    assert copy.fingerprint == toy_set.fingerprint


def _read_all(shards: ShardSet) -> list[float]:
    records = [shards.record(i) for i in range(len(shards))]
    return [float(shards.read_clip(clip, record.origin).sum()) for record in records for clip in record.clips]


def test_forked_readers_share_descriptors_without_disturbing_each_other(toy_set: ShardSet) -> None:
    expected = _read_all(toy_set)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [toy_set] * 4) == [expected] * 4


def test_holds_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 2)
    shards = ShardSet.open(write_toy_set(tmp_path, num_samples=10, samples_per_shard=1))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(len(shards)):
        shards.record(i)
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2  # a tar and its mapped index each


def corrupt(shards: ShardSet, i: int, position: int) -> None:
    """Flip one byte inside clip 0 of sample i; far from the ends that opening compares."""
    clip = shards.clips(i)[0]
    with clip.shard_path.open("r+b") as file:
        file.seek(clip.offset_bytes + position)
        byte = file.read(1)[0]
        file.seek(clip.offset_bytes + position)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_byte_is_a_sample_error_that_names_the_sample(toy_set: ShardSet) -> None:
    corrupt(toy_set, 2, 500)
    record = toy_set.record(2)
    with pytest.raises(SampleError, match=r"sample 'en/clip_2' in shard 'toy-000000.tar' of dataset 'toy': checksum"):
        toy_set.read_clip(record.clips[0], record.origin)
    neighbour = toy_set.record(3)
    toy_set.read_clip(neighbour.clips[0], neighbour.origin)


def test_a_cut_tar_is_found_while_reading(toy_set: ShardSet) -> None:
    record = toy_set.record(5)
    os.truncate(record.clips[0].shard_path, record.clips[0].offset_bytes + 10)
    with pytest.raises(SampleError, match="cut short: 10 of"):
        toy_set.read_clip(record.clips[0], record.origin)


@pytest.mark.parametrize(
    ("num_samples", "reason"),
    [(999, "has 1000 samples"), (320, "clip of 320 samples"), (480_001, "clip of 480001"), (0, "clip of 0 samples")],
)
def test_a_wrong_length_is_a_sample_error(toy_set: ShardSet, num_samples: int, reason: str) -> None:
    record = toy_set.record(0)
    with pytest.raises(SampleError, match=reason):
        toy_set.read_clip(dataclasses.replace(record.clips[0], num_samples=num_samples), record.origin)


def test_metadata_changed_since_it_was_indexed(toy_set: ShardSet) -> None:
    toy_set.record(5)  # once opened, the ends of a tar are not compared again
    path = toy_set.directory / "toy-000001.tar"
    path.write_bytes(path.read_bytes().replace(b'"num_samples":4000', b'"num_samples":4001'))
    with pytest.raises(SampleError, match=r"'pair'.*checksum of the metadata"):
        toy_set.record(5)


def test_an_exchanged_shard_is_refused(tmp_path: Path) -> None:
    write_toy_set(tmp_path / "a")
    write_toy_set(tmp_path / "b", num_samples=7)
    shards = ShardSet.open(tmp_path / "a")
    os.replace(tmp_path / "b" / "toy-000001.tar", tmp_path / "a" / "toy-000001.tar")
    with pytest.raises(ShardError, match="not the tar indexed"):
        shards.record(5)
    build_index(tmp_path / "a" / "toy-000001.tar")  # an index of its own does not make it part of the set
    for again in (shards, ShardSet.open(tmp_path / "a")):
        with pytest.raises(ShardError, match="not the tar indexed"):
            again.record(5)
        again.record(0)


def test_opening_touches_no_shard(tmp_path: Path) -> None:
    shards = ShardSet.open(write_toy_set(tmp_path))
    for tar_path in tmp_path.glob("*.tar*"):
        tar_path.unlink()
    shards = ShardSet.open(tmp_path)
    assert shards.clip_lengths()[1].tolist() == [1000, 1001, 1002, 1003, 2000, 3001, 4000]
    with pytest.raises(ShardError, match=r"toy-000000.tar' cannot be opened"):
        shards.record(0)


def test_lengths_are_views_of_the_mapped_index(toy_set: ShardSet) -> None:
    for array in toy_set.clip_lengths():
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_sha256_is_compared_where_thoroughness_is_asked_for(toy_set: ShardSet) -> None:
    record = toy_set.record(0)
    clip = dataclasses.replace(record.clips[0], sha256="0" * 64)
    assert toy_set.read_clip_bytes(clip, record.origin)
    with pytest.raises(SampleError, match="checksum"):
        toy_set.read_clip_bytes(clip, record.origin, thorough=True)
    with pytest.raises(SampleError, match="checksum"):
        toy_set.read_clip_bytes(dataclasses.replace(clip, xxh3=None), record.origin)


@pytest.mark.parametrize(
    "change",
    [
        {"contract_version": 2},
        {"shards": []},
        {"shards": [{"file": "../x.tar"}]},
        {"shards": [{"file": 3}]},
        {"name": 1},
    ],
)
def test_refuses_descriptions_that_lie(tmp_path: Path, change: dict) -> None:
    path = write_toy_set(tmp_path) / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardError):
        ShardSet.open(tmp_path)
