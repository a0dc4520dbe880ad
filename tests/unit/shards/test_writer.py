from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards.dataset import describe_set
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.writer import EncodedClip, ShardWriter
from tests.unit.shards.conftest import flac, preference, pretrain, voice_chat, write_toy_set


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = write_toy_set(tmp_path / "a"), write_toy_set(tmp_path / "b")
    assert files_of(first) == files_of(second)
    assert sorted(files_of(first)) == [
        "dataset.idx", "dataset.json", "toy-000000.tar", "toy-000000.tar.idx", "toy-000001.tar", "toy-000001.tar.idx",
    ]  # fmt: skip


def test_describes_the_set(toy_set: ShardSet) -> None:
    description = toy_set.description
    assert description["num_samples"] == 6
    assert description["num_clips"] == 7
    num_audio_samples = sum(1000 + number for number in range(4)) + 2000 + 3001 + 4000
    assert description["seconds"] == pytest.approx(num_audio_samples / 16_000, abs=2e-3)
    assert description["samples_by_task"] == {"transcribe": 4}
    assert description["samples_by_license"] == {"CC0-1.0": 6}
    assert description["seconds_by_language"] == {"en": round(4006 / 16_000, 3)}
    assert [shard["num_samples"] for shard in description["shards"]] == [4, 2]


@pytest.mark.parametrize(
    ("num_samples", "reason"), [(1, "clip of 1 samples"), (320, "clip of 320"), (480_001, "clip of 480001")]
)
def test_refuses_clips_the_model_cannot_take(tmp_path: Path, num_samples: int, reason: str) -> None:
    data = encode_flac(np.zeros(num_samples, dtype=np.float32))
    with (
        pytest.raises(SampleError, match=f"sample 'bad' in shard 'toy-000000.tar' of dataset 'toy': {reason}"),
        ShardWriter(tmp_path / "toy", "toy", split="train", license="CC0-1.0") as writer,
    ):
        writer.write("bad", [(data, "flac")], pretrain())
    assert list((tmp_path / "toy").iterdir()) == []


@pytest.mark.parametrize("num_samples", [321, 480_000])
def test_takes_the_shortest_and_the_longest_clip(tmp_path: Path, num_samples: int) -> None:
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer:
        assert writer.write("edge", [(encode_flac(np.zeros(num_samples, dtype=np.float32)), "flac")], pretrain())
    assert ShardSet.open(tmp_path).clips(0)[0].num_samples == num_samples


BAD = [
    ("a.b", pretrain(), r"key 'a\.b'"),
    ("../up", pretrain(), "key '../up'"),
    ("/root", pretrain(), "key '/root'"),
    ("k" * 81, pretrain(), "key of 81 characters"),
    ("", pretrain(), "key ''"),
    ("x", pretrain(text=" "), "'text' is ' '"),
    ("x", {k: v for k, v in pretrain().items() if k != "source"}, "'source' is None"),
    ("x", {**pretrain(), "split": "test"}, "split 'test' in a set of split 'train'"),
    ("x", {**pretrain(), "messages": []}, "payload fields"),
    ("x", {"source": "toy"}, "payload fields"),
    ("x", voice_chat(), "2 audio parts for 1 clips"),
    ("x", {**preference(), "rejected": "right"}, "chosen equals rejected"),
    ("x", {"messages": voice_chat()["messages"][:1], "source": "toy"}, "last turn is of role 'user'"),
    ("x", {"messages": [{"role": "robot", "content": "x"}], "source": "toy"}, "no turn with a role"),
    ("x", {**pretrain(), "extra_number": float("nan")}, "not JSON compliant"),
]


@pytest.mark.parametrize(("key", "metadata", "reason"), BAD)
def test_refuses_what_breaks_the_contract(tmp_path: Path, key: str, metadata: dict, reason: str) -> None:
    with (
        pytest.raises(SampleError, match=reason),
        ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer,
    ):
        writer.write(key, [(flac(1000), "flac")], metadata)


def test_refuses_nesting_that_the_reader_would_refuse(tmp_path: Path) -> None:
    deep: list = []
    for _ in range(20):
        deep = [deep]
    with (
        pytest.raises(SampleError, match="deeper than 16"),
        ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer,
    ):
        writer.write("x", [(flac(1000), "flac")], pretrain(deep=deep))


def test_refuses_a_key_twice_even_across_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0", samples_per_shard=1) as writer:
        writer.write("x", [(flac(1000), "flac")], pretrain())
        with pytest.raises(SampleError, match="written before"):
            writer.write("x", [(flac(1000), "flac")], pretrain())
    assert len(ShardSet.open(tmp_path)) == 1


def test_skips_and_counts_when_told_to(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0", on_bad="skip") as writer:
        assert not writer.write("empty", [(b"", "flac")], pretrain())
        assert not writer.write("short", [(flac(100), "flac")], pretrain())
        assert writer.write("good", [(flac(1000), "flac")], pretrain())
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["empty", "short"]
    assert "100 samples" in lines[1]["reason"]
    assert writer.num_skipped == 2
    assert writer.description is not None
    assert writer.description["num_skipped"] == 2
    assert len(ShardSet.open(tmp_path)) == 1


def test_takes_clips_that_were_measured_elsewhere(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer:
        writer.write("x", [EncodedClip.measure(flac(1234), "flac")], pretrain())
    assert ShardSet.open(tmp_path).clips(0)[0].num_samples == 1234


def test_never_overwrites_a_set(tmp_path: Path) -> None:
    write_toy_set(tmp_path)
    with pytest.raises(ShardError, match="already holds shards"):
        ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0")


def test_a_key_in_two_shards_of_other_tools_is_found(tmp_path: Path) -> None:
    write_toy_set(tmp_path)
    (tmp_path / "copy.tar").write_bytes((tmp_path / "toy-000000.tar").read_bytes())
    with pytest.raises(ShardError, match="more than one shard"):
        describe_set(tmp_path, "toy")
