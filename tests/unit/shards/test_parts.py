from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_audio_train.errors import ConfigError, ShardError
from qwen_audio_train.shards import prepare
from qwen_audio_train.shards.parts import Part
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, write_dataset
from tests.unit.shards.test_prepare import contents, options, read_clip, specs

__all__ = ["options"]  # a fixture


def samples() -> list[SampleSpec]:
    beeps = [SampleSpec(f"beep_{number}", {}, (), skip_reason="no speech") for number in range(4)]
    return [*specs(16), *beeps, *specs(21)[16:]]


def run_part(options: SetOptions, index: int, count: int) -> None:
    assert write_dataset(samples(), read_clip, replace(options, part=Part(index, count))) is None


def test_parts_write_what_one_machine_writes(options: SetOptions, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as machines:
        list(machines.map(lambda index: run_part(options, index, 4), range(4)))
    assert not (options.directory / "dataset.json").exists()
    finished = write_dataset([], read_clip, replace(options, finish=True))
    whole = replace(options, directory=tmp_path / "whole")
    assert finished == write_dataset(samples(), read_clip, whole)
    assert contents(options.directory) == contents(whole.directory)
    # 13 has no clip; the fifth shard holds beeps only, so it has no tar and must not count as missing.
    assert (finished["num_samples"], finished["num_skipped"], len(finished["shards"])) == (20, 5, 6)


def test_a_part_writes_its_own_shards_only(options: SetOptions) -> None:
    run_part(options, 1, 3)
    assert sorted(path.name for path in options.directory.glob("*.tar")) == ["toy-000001.tar"]
    assert sorted(path.name for path in options.directory.glob("*.skipped.jsonl")) == ["toy-000004.skipped.jsonl"]


def test_finishing_names_the_parts_that_are_missing(options: SetOptions) -> None:
    with pytest.raises(ShardError, match=r"no part of .* is through"):
        write_dataset([], read_clip, replace(options, finish=True))
    run_part(options, 0, 4)
    run_part(options, 2, 4)
    with pytest.raises(ShardError, match=r"2 of 4 parts are not through: 1/4, 3/4;"):
        write_dataset([], read_clip, replace(options, finish=True))


def test_finishing_names_a_shard_that_was_lost(options: SetOptions) -> None:
    for index in range(3):
        run_part(options, index, 3)
    (options.directory / "toy-000005.tar.idx").unlink()
    with pytest.raises(ShardError, match=r"1 shards are gone, the first is toy-000005.tar; run --part 2/3"):
        write_dataset([], read_clip, replace(options, finish=True))


def test_finishing_refuses_parts_that_listed_other_samples(options: SetOptions) -> None:
    run_part(options, 0, 2)
    write_dataset(samples()[1:], read_clip, replace(options, part=Part(1, 2)))
    with pytest.raises(ShardError, match="part 1/2 listed other samples than part 0"):
        write_dataset([], read_clip, replace(options, finish=True))


def test_a_killed_part_leaves_no_half_shard_and_goes_on(options: SetOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(clip: int) -> tuple[bytes, str]:
        if clip == 14:
            raise KeyboardInterrupt
        return read_clip(clip)

    with pytest.raises(KeyboardInterrupt):
        write_dataset(samples(), killed, replace(options, part=Part(1, 2)))
    # As after SIGKILL, when nobody tidies up: its workplace with a half shard is still there.
    half = options.directory / "part-00001-of-00002.dead" / "toy-000003.tar.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")
    assert sorted(path.name for path in options.directory.glob("*.tar")) == ["toy-000001.tar"]
    written = []
    original = prepare._write_shard
    monkeypatch.setattr(prepare, "_write_shard", lambda path, *rest: written.append(path.name) or original(path, *rest))
    run_part(options, 1, 2)
    assert written == ["toy-000003.tar", "toy-000005.tar"]
    assert not half.exists()


def test_a_shard_without_its_index_is_written_again(options: SetOptions) -> None:
    run_part(options, 0, 2)
    tar = options.directory / "toy-000002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:700])
    tar.with_name("toy-000002.tar.idx").unlink()
    run_part(options, 0, 2)
    assert tar.read_bytes() == whole


def test_what_a_killed_finish_left_is_finished(options: SetOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(2):
        run_part(options, index, 2)
    with monkeypatch.context() as patch:
        patch.setattr("qwen_audio_train.shards.parts.tidy", lambda directory: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_dataset([], read_clip, replace(options, finish=True))
    write_dataset([], read_clip, replace(options, finish=True))
    kinds = {"".join(path.suffixes) for path in options.directory.iterdir()}
    assert kinds == {".tar", ".tar.idx", ".idx", ".json", ".jsonl"}
    assert len((options.directory / "skipped.jsonl").read_text().splitlines()) == 5


def test_other_options_are_refused(options: SetOptions) -> None:
    run_part(options, 0, 2)
    with pytest.raises(ShardError, match="other inputs or options"):
        write_dataset(samples(), read_clip, replace(options, limit=3, part=Part(1, 2)))
    run_part(options, 1, 2)
    with pytest.raises(ShardError, match="other inputs or options"):
        write_dataset([], read_clip, replace(options, recipe={"corpus": "other"}, finish=True))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"ID": "3", "COUNT": "4", "MIN": "0", "MAX": "3"}, Part(3, 4)),
        ({"ID": "7", "COUNT": "4", "MIN": "1", "MAX": "7", "STEP": "2"}, Part(3, 4)),
    ],
)
def test_a_slurm_array_task_is_a_part(variables: dict[str, str], expected: Part | None) -> None:
    assert Part.from_environment({f"SLURM_ARRAY_TASK_{name}": value for name, value in variables.items()}) == expected


def test_an_array_with_gaps_is_refused() -> None:
    gaps = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
    with pytest.raises(ConfigError, match="array with gaps; say which part"):
        Part.from_environment(gaps)


@pytest.mark.parametrize("text", ["3", "4/4", "-1/4", "0/0", "a/b"])
def test_refuses_what_is_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        Part.parse(text)


def test_options_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def options_of(*more: str) -> SetOptions:
        args: argparse.Namespace = corpus_arguments("toy", "toy").parse_args(
            ["--input", "in", "--output", str(tmp_path), *more]
        )
        return SetOptions.from_arguments(args, name="toy", split="train", license="CC0-1.0", recipe={"corpus": "toy"})

    assert options_of().part == Part(0, 1)
    assert options_of("--part", "2/3").part == Part(2, 3)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    assert options_of().part == Part(5, 8)
    assert options_of("--part", "0/1").part == Part(0, 1)
    assert (options_of("--finish").finish, options_of("--finish").part) == (True, Part(0, 1))
    with pytest.raises(ConfigError, match="finish once"):
        options_of("--finish", "--part", "0/2")


def test_a_record_is_plain_json(options: SetOptions) -> None:
    run_part(options, 0, 2)
    record = json.loads((options.directory / "part-00000-of-00002.json").read_text())
    assert (record["num_samples"], record["num_shards"]) == (25, 7)
