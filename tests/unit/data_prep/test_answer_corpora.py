"""AIR-Bench and Align-Anything, on small trees and tables laid out like the releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep import air_bench, align_anything
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.samples import PreferenceRecord
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of, tone

WriteAudio = Callable[..., Path]


def item(number: int, path: str, **fields: Any) -> dict[str, Any]:
    shared = {"task_name": "T", "dataset_name": "d", "uniq_id": number, "path": path, "question": "What is it?"}
    return {**shared, "answer_gt": "a cat", **fields}


def write_part(root: Path, part: str, items: list[dict[str, Any]]) -> Path:
    (root / part / "T_d").mkdir(parents=True)
    (root / part / f"{part}_meta.json").write_text(json.dumps(items))
    return root / part / "T_d"


def test_air_bench_chat(tmp_path: Path, write_audio: WriteAudio) -> None:
    items = [item(1, "a.mp3", meta_info="A cat meows."), item(2, "gone.wav"), item(3, "../../secret.wav")]
    folder = write_part(tmp_path / "in", "Chat", items)
    write_audio(folder / "a.mp3", 44_100, 1, rate_hz=44_100)
    write_audio(tmp_path / "in" / "secret.wav", 16_000, 2)
    run(air_bench, tmp_path / "in", tmp_path / "out", "--parts", "Chat")
    output = tmp_path / "out" / "air_bench_chat"
    assert texts_of(output) == {"T/d/1": "a cat"}
    assert skipped_of(output) == {
        "T/d/2": "no recording: gone.wav",
        "T/d/3": "no recording: ../../secret.wav",
    }
    shards = ShardSet.open(output)
    record = shards.record(0)
    assert (shards.split, record.prompt, record.extra["meta_info"]) == ("test", "What is it?", "A cat meows.")


def test_air_bench_foundation(tmp_path: Path, write_audio: WriteAudio) -> None:
    choices = {"choice_a": "a dog", "choice_b": "a cat"}
    items = [
        item(1, "flac_named.wav", **choices, choice_c=None),
        item(2, "other_suffix.wav", **choices, choice_c="a cow", choice_d="a car"),
        item(3, "other_suffix.wav", **choices, answer_gt="a pig"),
        item(4, "noise.wav", **choices),
    ]
    folder = write_part(tmp_path / "in", "Foundation", items)
    write_audio(folder / "x.flac", 16_000, 1).rename(folder / "flac_named.wav")
    write_audio(folder / "other_suffix.flac", 16_000, 2)
    (folder / "noise.wav").write_bytes(b"not audio at all")
    run(air_bench, tmp_path / "in", tmp_path / "out", "--parts", "Foundation")
    output = tmp_path / "out" / "air_bench_foundation"
    assert texts_of(output) == {"T/d/1": "a cat", "T/d/2": "a cat"}
    reasons = skipped_of(output)
    assert reasons["T/d/3"] == "the right answer is none of the choices: 'a pig'"
    assert "begins with b'not '" in reasons["T/d/4"]
    record = ShardSet.open(output).record(0)
    assert record.prompt == f"{air_bench.INSTRUCTION}\nWhat is it?\nA. a dog\nB. a cat"
    assert record.extra["choices"] == ["a dog", "a cat"]
    assert (record.extra["letter"], record.extra["question"]) == ("B", "What is it?")


def test_air_bench_refuses_another_form(tmp_path: Path) -> None:
    write_part(tmp_path, "Chat", [{"path": "a.wav"}])
    with pytest.raises(ConfigError, match="item 0 has no question"):
        list(air_bench.samples_of(tmp_path, "Chat"))


def row(audio: Any, **fields: Any) -> dict[str, Any]:
    shared = {"prompt": "What is it?", "response_1": "A cat.", "response_2": "A dog.", "overall_response": 1}
    return {**shared, "audio_path": audio, **fields}


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")


def read_all(folder: Path) -> list[PreferenceRecord]:
    shards = ShardSet.open(folder)
    records = [shards.record(n) for n in range(len(shards))]
    for record in records:
        shards.read_clip(record.clips[0], record.origin)
    return records


def test_align_anything_samples(tmp_path: Path) -> None:
    audio = {"array": tone(22_050).tolist(), "sampling_rate": 22_050, "path": None}
    rows = [row(audio), row(audio, overall_response=2), row(audio, overall_response=0), row(audio, response_2="A cat.")]
    write_parquet(tmp_path / "in", rows)
    run(align_anything, tmp_path / "in", tmp_path / "out")
    folder = tmp_path / "out" / "align_anything_preference_train"
    records = read_all(folder)
    assert [(r.chosen, r.rejected) for r in records] == [("A cat.", "A dog."), ("A dog.", "A cat.")]
    assert records[0].messages[0]["content"] == [{"type": "audio"}, {"type": "text", "text": "What is it?"}]
    assert abs(records[0].clips[0].num_samples - 16_000) <= 1
    assert sorted(skipped_of(folder).values()) == ["both answers are equal", "overall_response is 0; expected 1 or 2"]


def test_align_anything_bytes_and_paths(tmp_path: Path, write_audio: WriteAudio) -> None:
    encoded = write_audio(tmp_path / "x.flac", 8000, 1).read_bytes()
    write_parquet(tmp_path / "bytes", [row({"bytes": encoded, "path": "x.wav"}), row({"bytes": b"zzzz", "path": "y"})])
    run(align_anything, tmp_path / "bytes", tmp_path / "out1")
    folder = tmp_path / "out1" / "align_anything_preference_train"
    assert len(read_all(folder)) == 1
    assert list(skipped_of(folder).values()) == ["audio begins with b'zzzz'"]
    write_audio(tmp_path / "paths" / "sub" / "a.wav", 8000, 2)
    write_parquet(tmp_path / "paths", [row("sub/a.wav"), row("../x.flac"), row("/etc/passwd")])
    run(align_anything, tmp_path / "paths", tmp_path / "out2")
    folder = tmp_path / "out2" / "align_anything_preference_train"
    assert len(read_all(folder)) == 1
    assert sorted(skipped_of(folder).values()) == [
        "audio path outside --audio: ../x.flac",
        "audio path outside --audio: /etc/passwd",
    ]


def test_align_anything_refuses_other_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path, [{"question": "x", "audio": "a.wav"}])
    with pytest.raises(ConfigError, match="has the columns question, audio; expected prompt, response_1"):
        run(align_anything, tmp_path, tmp_path / "out")
