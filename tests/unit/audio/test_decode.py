from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from qwen_audio_train.audio.decode import decode_audio, encode_flac

FORMATS = {
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def tone(seconds: float, rate_hz: int = 16_000, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def encode(samples: np.ndarray, encoding: str, rate_hz: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    container, subtype = FORMATS[encoding]
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", FORMATS)
def test_decodes_each_allowed_encoding(encoding: str) -> None:
    samples = decode_audio(encode(tone(0.5), encoding), encoding)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - 8000) < 2400  # lossy encoders may add a frame
    assert 0.3 < np.abs(samples[2000:6000]).max() < 0.7


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000])
def test_resamples_to_16_khz_keeping_the_tone(rate_hz: int) -> None:
    samples = decode_audio(encode(tone(1.0, rate_hz), "wav", rate_hz), "wav")
    assert len(samples) == 16_000
    np.testing.assert_allclose(samples[1000:-1000], tone(1.0)[1000:-1000], atol=2e-3)


def test_averages_channels() -> None:
    left, right = tone(0.2), tone(0.2, frequency_hz=880.0)
    samples = decode_audio(encode(np.stack([left, right], axis=1), "wav"), "wav")
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-4)


def test_flac_round_trip_is_exact() -> None:
    data = encode_flac(tone(0.3))
    samples = decode_audio(data, "flac")
    np.testing.assert_allclose(samples, tone(0.3), atol=1 / 32768)
    assert encode_flac(samples) == data


def test_flac_clips_instead_of_wrapping() -> None:
    samples = decode_audio(encode_flac(np.array([1.5, -1.5] * 100, dtype=np.float32)), "flac")
    assert samples[0] > 0.99
    assert samples[1] == -1.0


@pytest.mark.parametrize("encoding", ["pkl", "m4a", "FLAC", ""])
def test_refuses_encodings_that_are_not_listed(encoding: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        decode_audio(encode_flac(tone(0.1)), encoding)


def test_refuses_bytes_of_another_container() -> None:
    with pytest.raises(ValueError, match="named flac are WAV"):
        decode_audio(encode(tone(0.1), "wav"), "flac")


def test_refuses_garbage_and_nothing() -> None:
    for data in (b"", b"not audio at all" * 10):
        with pytest.raises(ValueError, match="do not decode"):
            decode_audio(data, "flac")


def test_refuses_a_flac_that_was_cut() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    data = encode_flac(noise)
    with pytest.raises(ValueError, match=r"cut short|do not decode"):
        decode_audio(data[: len(data) // 2], "flac")


def test_refuses_values_that_are_not_finite() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, np.nan, 1.0] * 200), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="not finite"):
        decode_audio(buffer.getvalue(), "wav")
    with pytest.raises(ValueError, match="not finite"):
        encode_flac(np.array([np.inf]))


def test_refuses_more_than_the_cap() -> None:
    data = encode_flac(np.zeros(48_000, dtype=np.float32))
    assert len(decode_audio(data, "flac", max_seconds=3.0)) == 48_000
    with pytest.raises(ValueError, match=r"more than 2.5 s"):
        decode_audio(data, "flac", max_seconds=2.5)


def test_refuses_absurd_headers() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((10, 9)), 16_000, format="WAV")
    with pytest.raises(ValueError, match="9 channels"):
        decode_audio(buffer.getvalue(), "wav")
    with pytest.raises(ValueError, match="384000 Hz"):
        decode_audio(encode(np.zeros(10), "wav", 384_000), "wav")


@pytest.mark.parametrize(("encoding", "subtype"), [("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS"), ("opus", "OPUS")])
def test_a_lossy_clip_over_ten_seconds_has_no_seams(encoding: str, subtype: str) -> None:
    t = np.arange(12 * 16_000) / 16_000
    sweep = (0.3 * np.sin(2 * np.pi * (200 + 40 * t) * t)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, sweep, 16_000, format="MP3" if encoding == "mp3" else "OGG", subtype=subtype)
    at_once, _ = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")
    np.testing.assert_allclose(decode_audio(buffer.getvalue(), encoding), at_once, atol=1e-6)
