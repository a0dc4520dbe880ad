from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from qwen_audio_train.shards.reader import ShardSet


def tone(num_samples: int, seed: int = 0) -> np.ndarray:
    frequency_hz = 200 + 37 * seed
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / 16_000)).astype(np.float32)


@pytest.fixture
def write_audio() -> Callable[..., Path]:
    def write(path: Path, num_samples: int = 3200, seed: int = 0, rate_hz: int = 16_000) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(num_samples, seed), rate_hz)
        return path

    return write


def texts_of(folder: Path) -> dict[str, str]:
    """Key -> text of a pretraining set, which is opened, and every clip of it decoded."""
    shards = ShardSet.open(folder)
    records = [shards.record(i) for i in range(len(shards))]
    for record in records:
        shards.read_clip(record.clips[0], record.origin)
    return {record.origin.key: record.text for record in records}


def skipped_of(folder: Path) -> dict[str, str]:
    """Key -> reason of what a set left out."""
    path = folder / "skipped.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert json.loads((folder / "dataset.json").read_bytes())["num_skipped"] == len(entries)
    return {entry["key"]: entry["reason"] for entry in entries}


def run(module: ModuleType, source: Path, output: Path, *more: str) -> None:
    """Prepare a corpus as its command line does, in this process."""
    command = ["--input", str(source), "--output", str(output), "--workers", "0", *more]
    module.prepare(module.build_parser().parse_args(command))
