"""What a telephone passes on and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.telephone import through_telephone

EDGE = 2000


def tone(hz: float, amplitude: float = 0.5, num_samples: int = 32_000) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(num_samples) / 16_000)).astype(np.float32)


def level_db(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Power between two frequencies."""
    inner = samples[EDGE:-EDGE].astype(np.float64)
    power = np.abs(np.fft.rfft(inner * np.hanning(len(inner)))) ** 2
    hz = np.fft.rfftfreq(len(inner), 1 / 16_000)
    return float(10 * np.log10(power[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-30))


@pytest.mark.parametrize("hz", [400, 1000, 2000, 3200])
def test_the_pass_band_passes(hz: float) -> None:
    before = tone(hz)
    after = through_telephone(before)
    assert abs(level_db(after, hz - 50, hz + 50) - level_db(before, hz - 50, hz + 50)) < 0.2
    # In time with the clip, and as exact as 8 bits of mu-law are (about 38 dB).
    error = (after - before)[EDGE:-EDGE]
    assert 10 * np.log10(np.mean(before[EDGE:-EDGE] ** 2) / np.mean(error**2)) > 30


@pytest.mark.parametrize("hz", [50, 150, 3700, 5000, 7000])
def test_what_lies_outside_is_gone(hz: float) -> None:
    before = tone(hz)
    assert level_db(through_telephone(before), hz - 30, hz + 30) < level_db(before, hz - 30, hz + 30) - 40


def test_nothing_is_left_above_4_khz() -> None:
    noise = (0.2 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    after = through_telephone(noise)
    assert level_db(after, 4200, 8000) < level_db(after, 300, 3400) - 60


def test_mu_law_noise_follows_the_level() -> None:
    """The point of mu-law: a clip 20 dB quieter has about the same ratio to its rounding noise."""
    ratios = []
    for amplitude in (0.5, 0.05):
        before = tone(1013, amplitude)  # no divisor of 8 kHz: rounding errors do not repeat
        after = through_telephone(before)
        ratios.append(level_db(after, 960, 1060) - level_db(after, 1100, 3300))
    assert 30 < ratios[1] < ratios[0] + 3
    assert ratios[0] < 45  # there is rounding noise at all


@pytest.mark.parametrize("num_samples", [321, 322, 323, 324, 15_999, 16_001, 479_999])
def test_length_and_type_stay(num_samples: int) -> None:
    after = through_telephone(np.full(num_samples, 0.1, np.float32))
    assert after.shape == (num_samples,)
    assert after.dtype == np.float32


def test_it_clips_at_full_scale() -> None:
    after = through_telephone(tone(1000, amplitude=4.0))
    # A square wave of height 1 has its fundamental at 4 / pi and nothing else below 3 kHz; band-limiting overshoots.
    assert np.abs(after).max() < 1.5


def test_silence_stays_silent() -> None:
    assert not through_telephone(np.zeros(5000, np.float32)).any()
