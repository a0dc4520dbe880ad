"""The same clip in the same epoch always changes in the same way, and no augmentation changes another's draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.audio.draws import augmentation_key
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.audio.lengths import MAX_CLIP_SAMPLES, MIN_CLIP_SAMPLES, audio_tokens, mel_frames
from qwen_audio_train.config.augment import AugmentConfig, NoiseConfig, SpecAugmentConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.samples import ClipFeatures
from tests.builders import noise_clip

KEYS = [augmentation_key(0, epoch, sample) for epoch in range(2) for sample in range(150)]
OFF = AugmentConfig()
SPEED = AugmentConfig(speed_factors=[0.9, 1.0, 1.1])
NOISE = AugmentConfig(noise=NoiseConfig("noises", probability=0.5, snr_db_min=0.0, snr_db_max=20.0))
TELEPHONE = AugmentConfig(telephone_probability=0.5)
GAIN = AugmentConfig(gain_db_min=-10.0, gain_db_max=10.0)
ALL = AugmentConfig(
    speed_factors=SPEED.speed_factors,
    noise=NOISE.noise,
    telephone_probability=0.5,
    gain_db_min=-10.0,
    gain_db_max=10.0,
    spec_augment=SpecAugmentConfig(probability=0.5),
)


class Noises:
    """Three noises; remembers which were read."""

    def __init__(self) -> None:
        self.read_numbers: list[int] = []

    def __len__(self) -> int:
        return 3

    def read(self, number: int) -> np.ndarray:
        self.read_numbers.append(number)
        return noise_clip(5000, seed=number)


def augmenter(config: AugmentConfig) -> Augmenter:
    return Augmenter(config, Noises() if config.noise.probability else None)


@pytest.mark.parametrize("key", KEYS[:5])
def test_off_is_bit_identical(key: int) -> None:
    made = Augmenter(OFF)
    samples = noise_clip(16_001)
    mel = ClipFeatures(LogMel(80)(samples), mel_frames(len(samples)))
    assert made.waveform(samples, key) is samples
    assert made.features(mel, key) is mel
    assert made.output_samples(16_001, key) == made.planned_samples(16_001) == 16_001
    assert not made.is_speed_limited(16_001)
    assert made.lengths_identity == ""


@pytest.mark.parametrize("config", [SPEED, NOISE, TELEPHONE, GAIN, ALL])
def test_a_key_decides_everything(config: AugmentConfig) -> None:
    samples = noise_clip(8000)
    kept = samples.copy()
    first, again = augmenter(config), augmenter(config)
    results = {first.waveform(samples, key).tobytes() for key in KEYS[:20]}
    assert {again.waveform(samples, key).tobytes() for key in reversed(KEYS[:20])} == results
    assert len(results) > 1  # and keys differ
    np.testing.assert_array_equal(samples, kept)


def test_the_epoch_changes_a_sample() -> None:
    made, samples = augmenter(ALL), noise_clip(8000)
    epochs = {made.waveform(samples, augmentation_key(0, epoch, 7)).tobytes() for epoch in range(6)}
    assert len(epochs) >= 5


def test_switching_others_on_leaves_speed_alone() -> None:
    assert [augmenter(ALL).output_samples(9000, key) for key in KEYS] == [
        augmenter(SPEED).output_samples(9000, key) for key in KEYS
    ]


def test_switching_others_on_leaves_noise_alone() -> None:
    samples, reads = noise_clip(2000), []
    for config in (NOISE, ALL):
        noises = Noises()
        made = Augmenter(config, noises)
        for key in KEYS[:100]:
            noises.read_numbers.append(-1)
            made.waveform(samples, key)
        reads.append(noises.read_numbers)
    assert reads[0] == reads[1]
    assert Counter(reads[0]).keys() == {-1, 0, 1, 2}


def test_switching_others_on_leaves_gain_and_telephone_alone() -> None:
    samples = noise_clip(2000)
    both = replace(TELEPHONE, gain_db_min=-10.0, gain_db_max=10.0)
    for key in KEYS[:50]:
        telephoned = augmenter(TELEPHONE).waveform(samples, key)
        gained = augmenter(GAIN).waveform(samples, key)
        factor = gained[0] / samples[0]
        np.testing.assert_allclose(augmenter(both).waveform(samples, key), telephoned * factor, rtol=1e-4, atol=1e-7)


def test_switching_others_on_leaves_masks_alone() -> None:
    mel = ClipFeatures(np.random.default_rng(0).standard_normal((80, 302)).astype(np.float32), 300)
    alone = augmenter(replace(OFF, spec_augment=ALL.spec_augment))
    for key in KEYS[:50]:
        np.testing.assert_array_equal(alone.features(mel, key).mel_MF, augmenter(ALL).features(mel, key).mel_MF)


@pytest.mark.parametrize("num_samples", [321, 322, 353, 354, 1000, 1001, 15_999, 16_000, 47_999])
def test_lengths_are_exact_and_never_above_the_plan(num_samples: int) -> None:
    samples = noise_clip(num_samples)
    for config in (ALL, replace(ALL, speed_factors=[0.83, 1.17]), replace(ALL, speed_factors=[1.5])):
        made = augmenter(config)
        for key in KEYS[:12]:
            changed = made.waveform(samples, key)
            assert len(changed) == made.output_samples(num_samples, key)
            assert audio_tokens(len(changed)) >= 1
            assert changed.dtype == np.float32


def test_the_plan_counts_the_slowest_speed_and_it_occurs() -> None:
    made = augmenter(SPEED)
    for num_samples in (321, 400, 9000, 16_001, 431_999, 432_000, 432_001, MAX_CLIP_SAMPLES):
        lengths = {made.output_samples(num_samples, key) for key in KEYS}
        assert max(lengths) == made.planned_samples(num_samples) <= MAX_CLIP_SAMPLES
        assert min(lengths) >= MIN_CLIP_SAMPLES


def test_speeds_are_alike_likely() -> None:
    counts = Counter(augmenter(SPEED).output_samples(9000, key) for key in KEYS)
    assert counts.keys() == {10_000, 9000, 8182}
    assert min(counts.values()) > 70


def test_a_clip_near_30_s_is_never_slowed_and_says_so() -> None:
    made = augmenter(SPEED)
    assert made.is_speed_limited(432_001)
    assert not made.is_speed_limited(432_000)
    assert {made.output_samples(480_000, key) for key in KEYS} == {480_000, 436_364}
    assert made.is_speed_limited(330)  # 1.1 would leave it without a token
    assert 300 not in {made.output_samples(330, key) for key in KEYS}
    only_slow = augmenter(AugmentConfig(speed_factors=[0.9]))
    assert only_slow.output_samples(480_000, KEYS[0]) == only_slow.planned_samples(480_000) == 480_000


def test_fast_only_plans_what_it_gives() -> None:
    made = augmenter(AugmentConfig(speed_factors=[1.25]))
    assert made.planned_samples(10_000) == made.output_samples(10_000, KEYS[0]) == 8000


def test_shares_and_ranges_are_met() -> None:
    samples = noise_clip(500)
    noisy = sum(augmenter(NOISE).waveform(samples, key) is not samples for key in KEYS)
    telephoned = sum(augmenter(TELEPHONE).waveform(samples, key) is not samples for key in KEYS)
    assert 120 < noisy < 180
    assert 120 < telephoned < 180
    gains_db = [20 * np.log10(augmenter(GAIN).waveform(samples, key)[0] / samples[0]) for key in KEYS]
    assert -10 - 1e-4 < min(gains_db) < -9.5
    assert 9.5 < max(gains_db) < 10 + 1e-4
    assert abs(np.mean(gains_db)) < 1


def test_gain_beyond_full_scale_is_not_clipped() -> None:
    made = augmenter(AugmentConfig(gain_db_min=20.0, gain_db_max=20.0))
    np.testing.assert_allclose(made.waveform(np.full(400, 0.5, np.float32), 1), 5.0, rtol=1e-6)


def test_gain_comes_after_the_telephone() -> None:
    """Or it would clip: the order that the module states."""
    tone = (0.5 * np.sin(np.arange(8000) * 2 * np.pi / 16)).astype(np.float32)
    config = AugmentConfig(telephone_probability=1.0, gain_db_min=20.0, gain_db_max=20.0)
    assert np.abs(augmenter(config).waveform(tone, 1)[1000:-1000]).max() > 4.5


def test_lengths_identity_tells_speeds_apart() -> None:
    assert augmenter(SPEED).lengths_identity == "speeds 90 100 110" == augmenter(ALL).lengths_identity
    assert augmenter(AugmentConfig(speed_factors=[0.9])).lengths_identity == "speeds 90"


def test_noise_without_a_source_is_refused() -> None:
    class Nothing(Noises):
        def __len__(self) -> int:
            return 0

    for source in (None, Nothing()):
        with pytest.raises(ConfigError, match="name a shard set that has samples"):
            Augmenter(NOISE, source)


def test_golden_waveform() -> None:
    """Speed, noise and gain of one key, to what a resampler's build may differ in (mu-law would magnify it)."""
    config = replace(ALL, noise=replace(NOISE.noise, probability=1.0), telephone_probability=0.0)
    tone = (0.3 * np.sin(np.arange(4000) * 0.3)).astype(np.float32)
    key = next(key for key in KEYS if augmenter(config).output_samples(4000, key) > 4000)
    np.testing.assert_allclose(augmenter(config).waveform(tone, key)[1000:1006], GOLDEN_SAMPLES, atol=2e-4)


GOLDEN_SAMPLES: list[float] = [0.0686, 0.2166, 0.28514, 0.35731, 0.75446, 0.43131]
