from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.writer import ShardWriter


def flac(num_samples: int, seed: int = 0) -> bytes:
    return encode_flac(np.random.default_rng(seed).uniform(-0.1, 0.1, num_samples).astype(np.float32))


def pretrain(text: str = "hello", **changes: Any) -> dict[str, Any]:
    payload = {"task": "transcribe", "audio_language": "en", "text_language": "en", "text": text, "source": "toy"}
    return {**payload, **changes}


def voice_chat() -> dict[str, Any]:
    turns = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "and"}, {"type": "audio"}]},
        {"role": "assistant", "content": "Two clips."},
    ]
    return {"messages": turns, "source": "toy"}


def preference() -> dict[str, Any]:
    turns = [{"role": "user", "content": [{"type": "audio"}]}]
    return {"messages": turns, "chosen": "right", "rejected": "wrong", "source": "toy", "judge": "rule", "score": 0.5}


def write_toy_set(directory: Path, num_samples: int = 6, samples_per_shard: int = 4) -> Path:
    with ShardWriter(directory, "toy", split="train", license="CC0-1.0", samples_per_shard=samples_per_shard) as writer:
        for number in range(num_samples - 2):
            writer.write(f"en/clip_{number}", [(flac(1000 + number, number), "flac")], pretrain(f"text {number}"))
        writer.write("chat", [(flac(2000), "flac"), (flac(3001), "flac")], voice_chat())
        writer.write("pair", [(flac(4000), "flac")], preference())
    return directory


@pytest.fixture
def toy_set(tmp_path: Path) -> ShardSet:
    return ShardSet.open(write_toy_set(tmp_path / "toy"))
