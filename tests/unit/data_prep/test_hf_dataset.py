from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import hf_dataset
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def run(dataset: Path, output: Path, *more: str) -> ShardSet:
    options = ["--audio-language", "fr", "--split", "test", "--license", "CC0-1.0", "--workers", "0", "--name", "toy"]
    command = ["--dataset", str(dataset), "--output", str(output), *options, *more]
    hf_dataset.prepare(hf_dataset.build_parser().parse_args(command))
    return ShardSet.open(output / "toy")


def test_parquet_with_embedded_bytes(tmp_path: Path, write_audio: Callable[..., Path]) -> None:
    paths = [write_audio(tmp_path / f"{n}{suffix}", 3200 + n) for n, suffix in enumerate((".flac", ".wav"))]
    rows = {
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths] + [{"bytes": b"?", "path": None}],
        "sentence": ["un", "deux", "trois"],
    }
    # The schema says that the column is decoded audio, as in sets on the hub.
    features = datasets.Features({"audio": datasets.Audio(), "sentence": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(rows, schema=features.arrow_schema), tmp_path / "set" / "rows.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "set" / "rows.parquet"), split="train")
    assert isinstance(stream.features["audio"], datasets.Audio)
    shards = run(tmp_path / "set", tmp_path / "out", "--text-column", "sentence")
    records = [shards.record(i) for i in range(len(shards))]
    assert [(r.text, r.audio_language, r.source, r.split) for r in records] == [
        ("un", "fr", "toy", "test"), ("deux", "fr", "toy", "test"),
    ]  # fmt: skip
    assert [clip.encoding for r in records for clip in r.clips] == ["flac", "flac"]
    assert [len(shards.read_clip(r.clips[0], r.origin)) for r in records] == [3200, 3201]
    assert shards.description["num_skipped"] == 1


def test_folder_of_audio_files(tmp_path: Path, write_audio: Callable[..., Path]) -> None:
    for number in range(2):
        write_audio(tmp_path / "set" / f"{number}.wav", 3200 + number)
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\n0.wav,zero\n1.wav,one\n")
    shards = run(tmp_path / "set", tmp_path / "out", "--limit", "1")
    assert [shards.record(i).text for i in range(len(shards))] == ["zero"]


def test_names_the_columns_when_one_is_missing(tmp_path: Path, write_audio: Callable[..., Path]) -> None:
    write_audio(tmp_path / "set" / "0.wav")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\n0.wav,zero\n")
    with pytest.raises(ConfigError, match=r"no column \['sentence'\]"):
        run(tmp_path / "set", tmp_path / "out", "--text-column", "sentence")
