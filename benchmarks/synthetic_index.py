"""A set of any size for benchmarks: a true ``dataset.idx`` and ``dataset.json`` over a handful of real tars.

Every shard is a hard link to one of a few tars that hold real clips, so every entry can be read; only the number of
entries is made up. 100 million entries take 6 GB of disk.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.dataset import read_description
from qwen_audio_train.shards.files import json_bytes, write_file
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.set_index import SetIndexWriter
from qwen_audio_train.shards.writer import EncodedClip, ShardWriter

NUM_TARS = 4
SAMPLES_PER_SHARD = 2000


def noise_clip(seconds: float, seed: int) -> EncodedClip:
    """A clip of noise, which FLAC cannot make small: about 24 kB a second."""
    noise = np.random.default_rng(seed).normal(0, 0.1, int(seconds * 16_000)).clip(-0.9, 0.9)
    return EncodedClip.measure(encode_flac(noise.astype(np.float32)), "flac")


def write_real_set(directory: Path, *, num_shards: int, samples_per_shard: int, seconds: float | None) -> Path:
    """A real set of noise clips; ``seconds`` None draws 0.5 to 30 s (mean 8 s) anew for each sample."""
    random = np.random.default_rng(0)
    payload = {"task": "transcribe", "audio_language": "en", "text_language": "en", "source": "noise"}
    options = {"split": "train", "license": "CC0-1.0"}
    with ShardWriter(directory, "noise", samples_per_shard=samples_per_shard, **options) as writer:  # type: ignore[arg-type]
        for number in range(num_shards * samples_per_shard):
            length = seconds or float(np.clip(random.gamma(1.8, 4.4), 0.5, 30.0))
            text = "word " * max(1, int(2.5 * length))
            writer.write(f"clip_{number:08d}", [noise_clip(length, number)], {**payload, "text": text})
    return directory


def write_synthetic_set(real: Path, directory: Path, num_samples: int) -> Path:
    """A set of ``num_samples`` entries whose shards are hard links to the tars of ``real``, in turn.

    Args:
        real: a set all of whose shards hold equally many samples, which divides ``num_samples``.
    """
    source, shards = ShardSet.open(real), read_description(real / "dataset.json")["shards"]
    index = source._index
    num_shards, rest = divmod(num_samples, shards[0]["num_samples"])
    if rest or num_shards == 0:
        raise SystemExit(f"{num_samples} entries are no multiple of {shards[0]['num_samples']} samples a shard")
    directory.mkdir(parents=True)
    described, parts = [], []
    for number in range(len(shards)):
        (first, last), (first_clip, last_clip) = index.tables.bounds(number)
        parts.append((slice(first, last), slice(first_clip, last_clip), index.tables.shards[number]))
    for number in range(num_shards):
        shard = shards[number % len(shards)]
        name = f"synthetic-{number:06d}.tar"
        os.link(real / shard["file"], directory / name)
        described.append({**shard, "file": name})
    num_clips = sum(shard["num_clips"] for shard in described)
    changes = {"name": "synthetic", "num_samples": num_samples, "num_clips": num_clips, "shards": described}
    raw = json_bytes({**source.description, **changes}, indent=2)
    write_file(directory / "dataset.json", raw)
    writer = SetIndexWriter(
        directory / "dataset.idx", num_shards=num_shards, num_samples=num_samples, num_clips=num_clips
    )
    tables = index.tables
    clip_counts = np.diff(tables.first_clip)
    for number in range(num_shards):
        samples, clips, row = parts[number % len(parts)]
        writer.add(
            tar_bytes=int(row["tar_bytes"]),
            edges=row["edges"].tobytes(),
            num_clips=clip_counts[samples],
            clip_samples=tables.clip_samples[clips],
            samples=tables.samples[samples],
            clips=tables.clips[clips],
        )
    writer.publish(raw)
    assert json.loads(raw)["num_samples"] == num_samples
    return directory
