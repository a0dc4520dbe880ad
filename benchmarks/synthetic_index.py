"""Sets for benchmarks: speech-like clips of realistic lengths, and sets of any size over them.

Every shard of a large set is a hard link to one real tar, so every entry can be read; only the number of entries is
made up. 100 million entries take 7 GB of disk.
"""

from __future__ import annotations

import os
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.dataset import read_description
from qwen_audio_train.shards.files import json_bytes, write_file
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.set_index import SetIndexWriter
from qwen_audio_train.shards.writer import EncodedClip, ShardWriter

DISTINCT_CLIPS = 250


def speech_seconds(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Lengths like those of speech corpora, shape (count,): log-normal, 0.5 to 30 s, mean about 8 s."""
    seconds = np.random.default_rng(seed).lognormal(1.85, 0.75, 2 * count + 100)
    return seconds[(seconds >= 0.5) & (seconds <= 30)][:count]


def speech_like(seconds: float, seed: int) -> EncodedClip:
    """Harmonics of a gliding voice in syllables with pauses, and a little noise; FLAC makes about 17 kB a second."""
    draw = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * 16_000)) / 16_000
    phase = 2 * np.pi * (draw.uniform(90, 220) * time_s + 2 * np.sin(2 * np.pi * 0.5 * time_s))
    voice = sum(np.sin(k * phase + draw.uniform(0, 6)) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * draw.uniform(1.5, 3) * time_s) + 0.3, 0, None)
    samples = 0.12 * voice * syllables + draw.normal(0, 0.004, len(time_s)) * (0.2 + syllables)
    return EncodedClip.measure(encode_flac(samples.clip(-0.95, 0.95).astype(np.float32)), "flac")


def write_speech_set(directory: Path, *, num_shards: int, samples_per_shard: int) -> Path:
    """A real set of speech-like clips of ``speech_seconds``; some hundred distinct ones, again and again."""
    num_distinct = min(DISTINCT_CLIPS, num_shards * samples_per_shard)
    clips = [speech_like(seconds, seed) for seed, seconds in enumerate(speech_seconds(num_distinct))]
    payload = {"task": "transcribe", "audio_language": "en", "text_language": "en", "source": "synthetic"}
    options = {"split": "train", "license": "CC0-1.0", "samples_per_shard": samples_per_shard}
    with ShardWriter(directory, "speech", **options) as writer:  # type: ignore[arg-type]
        for number, clip in zip(range(num_shards * samples_per_shard), cycle(clips), strict=False):
            text = "word " * max(1, int(2.5 * clip.num_samples / 16_000))
            writer.write(f"clip_{number:08d}", [clip], {**payload, "text": text})
    return directory


def write_synthetic_set(real: Path, directory: Path, num_samples: int) -> Path:
    """A set of ``num_samples`` entries whose shards are hard links to the one tar of ``real``.

    Args:
        real: a set of one shard, whose number of samples divides ``num_samples``.
    """
    source, shard = ShardSet.open(real), read_description(real / "dataset.json")["shards"][0]
    num_shards, rest = divmod(num_samples, shard["num_samples"])
    if rest or num_shards == 0:
        raise SystemExit(f"{num_samples} entries are no multiple of {shard['num_samples']} samples a shard")
    directory.mkdir(parents=True)
    names = [f"synthetic-{number:06d}.tar" for number in range(num_shards)]
    for name in names:
        os.link(real / shard["file"], directory / name)
    changes = {
        "name": "synthetic",
        "num_samples": num_samples,
        "num_clips": num_shards * shard["num_clips"],
        "shards": [{**shard, "file": name} for name in names],
    }
    raw = json_bytes({**source.description, **changes}, indent=2)
    write_file(directory / "dataset.json", raw)
    counts = {"num_shards": num_shards, "num_samples": num_samples, "num_clips": num_shards * shard["num_clips"]}
    writer, tables = SetIndexWriter(directory / "dataset.idx", **counts), source._index.tables
    for _ in range(num_shards):
        writer.add(
            tar_bytes=int(tables.shards[0]["tar_bytes"]),
            edges=tables.shards[0]["edges"].tobytes(),
            num_clips=np.diff(tables.first_clip),
            clip_samples=tables.clip_samples,
            samples=tables.samples,
            clips=tables.clips,
        )
    writer.publish(raw)
    return directory
