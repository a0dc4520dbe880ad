"""Noises out of a shard set, by number: what audio/augment.py mixes into clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class NoiseSet:
    """A set whose samples have one clip each; its texts are not looked at."""

    shards: ShardSet

    @classmethod
    def open(cls, path: str | Path) -> NoiseSet:
        """Open a set by its folder.

        Raises:
            ShardError: it cannot be opened.
            ConfigError: its samples do not have one clip each.
        """
        shards = ShardSet.open(path)
        num_clips = sum(shard["num_clips"] for shard in shards.description["shards"])
        if num_clips != len(shards):
            raise ConfigError(
                f"noise set '{path}' has {num_clips} clips in {len(shards)} samples: a noise is a sample with one clip"
            )
        return cls(shards)

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, number: int) -> Samples:
        """Float32 mono at 16 kHz. Raises SampleError if the noise cannot be read; names it."""
        record = self.shards.record(number)
        return self.shards.read_clip(record.clips[0], record.origin)
