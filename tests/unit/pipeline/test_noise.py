"""Noises come out of a shard set by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.config.augment import AugmentConfig, NoiseConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.pipeline.noise import NoiseSet
from qwen_audio_train.shards.writer import ShardWriter
from tests.builders import noise_clip


def write_set(folder: Path, clips_of_samples: list[int]) -> Path:
    with ShardWriter(folder, "noises", split="train", license="CC0-1.0") as writer:
        for number, num_clips in enumerate(clips_of_samples):
            user = {"role": "user", "content": [{"type": "audio"}] * num_clips}
            clips = [(encode_flac(noise_clip(3000, seed=number)), "flac")] * num_clips
            messages = [user, {"role": "assistant", "content": "noise"}]
            writer.write(f"n{number}", clips, {"messages": messages, "source": "toy"})
    return folder


def test_a_number_is_a_clip(tmp_path: Path) -> None:
    noises = NoiseSet.open(write_set(tmp_path / "set", [1, 1, 1]))
    assert len(noises) == 3
    for number in range(3):
        np.testing.assert_allclose(noises.read(number), noise_clip(3000, seed=number), atol=2**-15)


def test_an_augmenter_takes_it(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [1, 1])
    config = AugmentConfig(noise=NoiseConfig(str(folder), probability=1.0, snr_db_min=10.0, snr_db_max=10.0))
    clip = noise_clip(8000)
    added = Augmenter(config, NoiseSet.open(folder)).waveform(clip, 5) - clip
    assert abs(10 * np.log10(np.mean(clip**2) / np.mean(added**2)) - 10) < 0.1


def test_a_set_with_other_than_one_clip_a_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 clips in 2 samples"):
        NoiseSet.open(write_set(tmp_path / "set", [1, 2]))
