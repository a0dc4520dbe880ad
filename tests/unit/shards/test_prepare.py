from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards import prepare
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, write_dataset
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.shards.conftest import flac, pretrain


def read_clip(clip: int) -> tuple[bytes, str]:
    if clip == 13:
        raise ValueError("unlucky")
    return flac(1000 + clip, clip), "flac"


def specs(count: int) -> list[SampleSpec]:
    return [SampleSpec(f"clip_{number}", pretrain(f"text {number}"), (number,)) for number in range(count)]


@pytest.fixture
def options(tmp_path: Path) -> SetOptions:
    recipe = {"corpus": "toy", "revision": 1}
    return SetOptions(tmp_path / "toy", "toy", "train", "CC0-1.0", recipe, samples_per_shard=4)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_processes_write_what_one_process_writes(options: SetOptions, tmp_path: Path) -> None:
    write_dataset(specs(20), read_clip, options)
    write_dataset(specs(20), read_clip, replace(options, directory=tmp_path / "parallel", workers=2))
    assert contents(options.directory) == contents(tmp_path / "parallel")
    shards = ShardSet.open(options.directory)
    assert [shards.record(i).origin.key for i in (0, 12, 13)] == ["clip_0", "clip_12", "clip_14"]


def test_counts_and_lists_what_is_left_out(options: SetOptions) -> None:
    samples = [*specs(15), SampleSpec("beep", {}, (), skip_reason="no speech")]
    description = write_dataset(samples, read_clip, options)
    assert (description["num_samples"], description["num_skipped"]) == (14, 2)
    lines = [json.loads(line) for line in (options.directory / "skipped.jsonl").read_text().splitlines()]
    shared = {"dataset": "toy", "shard": "toy-000003.tar"}
    assert lines == [
        {**shared, "key": "clip_13", "reason": "unlucky"},
        {**shared, "key": "beep", "reason": "no speech"},
    ]


def test_raises_when_nothing_may_be_skipped(options: SetOptions) -> None:
    with pytest.raises(SampleError, match=r"sample 'clip_13' .*unlucky"):
        write_dataset(specs(15), read_clip, replace(options, on_bad="raise"))


def test_a_second_run_is_a_no_op(options: SetOptions) -> None:
    write_dataset(specs(6), read_clip, options)
    before = {path: path.stat().st_mtime_ns for path in options.directory.iterdir()}

    def never() -> Iterator[SampleSpec]:
        raise AssertionError("samples were asked for")
        yield

    write_dataset(never(), read_clip, options)
    assert {path: path.stat().st_mtime_ns for path in options.directory.iterdir()} == before


def test_goes_on_where_it_was_stopped(options: SetOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(clip: int) -> tuple[bytes, str]:
        if clip == 9:
            raise KeyboardInterrupt
        return read_clip(clip)

    with pytest.raises(KeyboardInterrupt):
        write_dataset(specs(20), stopping, options)
    assert not (options.directory / "dataset.json").exists()
    written = []
    original = prepare._write_shard
    monkeypatch.setattr(prepare, "_write_shard", lambda path, *rest: written.append(path.name) or original(path, *rest))
    write_dataset(specs(20), read_clip, options)
    assert written == ["toy-000002.tar", "toy-000003.tar", "toy-000004.tar"]
    write_dataset(specs(20), read_clip, replace(options, directory=tmp_path / "unbroken"))
    assert contents(options.directory) == contents(tmp_path / "unbroken")


def test_refuses_a_folder_of_another_recipe(options: SetOptions) -> None:
    write_dataset(specs(6), read_clip, options)
    with pytest.raises(ShardError, match="other inputs or options"):
        write_dataset(specs(6), read_clip, replace(options, limit=3))
    (options.directory / "dataset.json").unlink()
    with pytest.raises(ShardError, match="other inputs or options"):
        write_dataset(specs(6), read_clip, options)


def test_limit(options: SetOptions) -> None:
    assert write_dataset(specs(20), read_clip, replace(options, limit=5))["num_samples"] == 5


def test_a_set_without_one_good_sample_is_an_error(options: SetOptions) -> None:
    with pytest.raises(ShardError, match="holds no tar"):
        write_dataset([SampleSpec("beep", {}, (), skip_reason="no speech")], read_clip, options)
