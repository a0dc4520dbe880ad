"""Augmentation, keyed by what is augmented: the same sample in the same epoch always changes in the same way.

Order: speed, noise, telephone, gain (on samples); then, on the mel, SpecAugment. Noise comes before the telephone
because a telephone carries the room it stands in; gain comes last so that it never drives the telephone into clipping.
Samples are float32 and are not clipped: after noise or gain they may exceed 1, which the mel takes as any other level.
Only the telephone clips at full scale, as a telephone does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.draws import Draws, Purpose
from qwen_audio_train.audio.noise import mixed_at
from qwen_audio_train.audio.spec_augment import spec_augment
from qwen_audio_train.audio.speed import NORMAL_SPEED, at_speed, legal_speeds, samples_at, speed_hundredths
from qwen_audio_train.audio.telephone import through_telephone
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.samples import ClipFeatures, FloatArray

if TYPE_CHECKING:
    from qwen_audio_train.config.augment import AugmentConfig


class NoiseSource(Protocol):
    """Noises by number, for instance of a shard set."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Samples:
        """Float32 mono at 16 kHz, at least one sample."""


class Augmenter:
    """What happens to the clips of one source.

    Every method is a pure function of its arguments; ``key`` is ``augmentation_key(seed, epoch, sample, clip)``.

    Args:
        config: checked by ``augment_problems``.
        noise: needed when ``config.noise.probability`` is above 0.

    Raises:
        ConfigError: noise is on and its source is missing or empty.
    """

    def __init__(self, config: AugmentConfig, noise: NoiseSource | None = None) -> None:
        if config.noise.probability and not noise:
            raise ConfigError(
                f"noise.probability={config.noise.probability} and noise.shard_set={config.noise.shard_set} gives no "
                "noises: name a shard set that has samples"
            )
        self.config = config
        self._noise = noise
        self._speeds = tuple(speed_hundredths(factor) for factor in config.speed_factors)

    @property
    def lengths_identity(self) -> str:
        """What ``planned_samples`` depends on: part of the key under which measured lengths are kept."""
        return "speeds " + " ".join(map(str, self._speeds)) if self._speeds else ""

    def planned_samples(self, num_samples: int) -> int:
        """Length that the plan must count for a clip: at the slowest speed that it can get."""
        speeds = legal_speeds(num_samples, self._speeds)
        return samples_at(num_samples, min(speeds, default=NORMAL_SPEED))

    def is_speed_limited(self, num_samples: int) -> bool:
        """Whether some factor is never drawn for the clip: it would exceed 30 s or be too short for a token."""
        return len(legal_speeds(num_samples, self._speeds)) < len(self._speeds)

    def output_samples(self, num_samples: int, key: int) -> int:
        """Length of what ``waveform`` returns for a clip of ``num_samples``, to the sample."""
        return samples_at(num_samples, self._speed(num_samples, key))

    def waveform(self, samples: Samples, key: int) -> Samples:
        """The clip after speed, noise, telephone and gain; the same array when none of them applies.

        Shape (num_samples,) -> (output_samples(num_samples, key),). Not clipped: see the top of this file.
        """
        config = self.config
        samples = at_speed(samples, self._speed(len(samples), key))
        draws = Draws(key, Purpose.noise)
        if self._noise is not None and draws.unit() < config.noise.probability:
            samples = mixed_at(
                samples,
                self._noise.read(draws.below(len(self._noise))),
                snr_db=draws.between(config.noise.snr_db_min, config.noise.snr_db_max),
                start=draws.unit(),
            )
        if Draws(key, Purpose.telephone).unit() < config.telephone_probability:
            samples = through_telephone(samples)
        if config.gain_db_min or config.gain_db_max:
            gain_db = Draws(key, Purpose.gain).between(config.gain_db_min, config.gain_db_max)
            samples = samples * np.float32(10 ** (gain_db / 20))
        return samples

    def features(self, clip: ClipFeatures, key: int) -> ClipFeatures:
        """The clip's mel after SpecAugment; the same object when it does not apply. Its length never changes."""
        spec = self.config.spec_augment
        draws = Draws(key, Purpose.spec_augment)
        if draws.unit() >= spec.probability:
            return clip
        return spec_augment(clip, spec, draws)

    def _speed(self, num_samples: int, key: int) -> int:
        speeds = legal_speeds(num_samples, self._speeds)
        return speeds[Draws(key, Purpose.speed).below(len(speeds))] if speeds else NORMAL_SPEED


def mask_token_spans(states_AD: FloatArray, *, seed: int, spans: int, longest_tokens: int) -> FloatArray:
    """SpecAugment's time masks on encoder outputs: ``spans`` stretches of 0 to ``longest_tokens`` rows set to zero.

    A stretch never covers more than a quarter of the clip.
    """
    # PCG64 by explicit integer arithmetic of its output: raw 64-bit words are fixed by the generator's definition.
    words = np.random.PCG64(seed).random_raw(2 * spans)
    num_tokens = len(states_AD)
    masked = states_AD.copy()
    for span in range(spans):
        width = int(words[2 * span] % (min(longest_tokens, num_tokens // 4) + 1))
        first = int(words[2 * span + 1] % (num_tokens - width + 1))
        masked[first : first + width] = 0
    return masked
