"""A narrow-band telephone channel: 300 to 3400 Hz, 8 kHz, mu-law of 8 bits, and back to 16 kHz."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import soxr

from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.audio.speed import exactly

TELEPHONE_RATE_HZ = 8_000
PASS_BAND_HZ = (300.0, 3400.0)
FILTER_TAPS = 257
"""Odd, so that the filter delays by whole samples; 16 ms to either side, edges about 100 Hz wide."""
MU = 255.0
"""Of ITU-T G.711's mu-law, here by its formula rather than its piecewise-linear table."""
LEVELS_EACH_SIDE = 127


def through_telephone(samples: Samples) -> Samples:
    """The clip as a telephone would pass it on, of the same length and in time with it.

    Beyond full scale (|x| > 1) the codec clips.
    """
    narrow = soxr.resample(samples, SAMPLING_RATE_HZ, TELEPHONE_RATE_HZ, quality="HQ")
    coded = _mu_law(_band_limited(np.asarray(narrow, dtype=np.float64)))
    wide = soxr.resample(coded, TELEPHONE_RATE_HZ, SAMPLING_RATE_HZ, quality="HQ")
    return exactly(np.asarray(wide, dtype=np.float32), len(samples))


def _mu_law(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compressed, rounded to 255 levels, expanded."""
    clipped = np.clip(samples, -1.0, 1.0)
    compressed = np.sign(clipped) * np.log1p(MU * np.abs(clipped)) / np.log1p(MU)
    levels = np.rint(compressed * LEVELS_EACH_SIDE) / LEVELS_EACH_SIDE
    return np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(MU)) / MU


def _band_limited(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    num_points = 1 << (len(samples) + FILTER_TAPS - 2).bit_length()
    spectrum = np.fft.rfft(samples, num_points) * _band_pass_spectrum(num_points)
    delay = FILTER_TAPS // 2
    return np.fft.irfft(spectrum, num_points)[delay : delay + len(samples)]


@functools.lru_cache(maxsize=8)
def _band_pass_spectrum(num_points: int) -> npt.NDArray[np.complex128]:
    """Windowed-sinc band-pass, linear phase."""
    times = np.arange(FILTER_TAPS) - FILTER_TAPS // 2
    low, high = (2 * edge / TELEPHONE_RATE_HZ for edge in PASS_BAND_HZ)
    taps = (high * np.sinc(high * times) - low * np.sinc(low * times)) * np.hamming(FILTER_TAPS)
    return np.fft.rfft(taps, num_points)
