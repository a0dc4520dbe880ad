"""Encoded bytes -> float32 mono at 16 kHz, and back to FLAC for writers.

An allow-list of containers, each named by the caller and checked against what the bytes really are: a decoder is never
chosen by the data alone. Everything wrong with the bytes is a ``ValueError``; the reader of a shard, who knows where
the bytes came from, turns it into a ``SampleError``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from qwen_audio_train.audio.containers import whole_container
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ

Samples = npt.NDArray[np.float32]

CONTAINERS = {
    "flac": frozenset({"FLAC"}),
    "wav": frozenset({"WAV", "WAVEX"}),
    "mp3": frozenset({"MP3", "MPEG"}),
    "ogg": frozenset({"OGG"}),
    "opus": frozenset({"OGG"}),
}
"""Encodings that may be decoded, and the names libsndfile gives their containers."""

CODECS = {
    "flac": frozenset({"PCM_S8", "PCM_16", "PCM_24"}),
    "wav": frozenset({"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}),
    "mp3": frozenset({"MPEG_LAYER_III"}),
    "ogg": frozenset({"VORBIS", "OPUS"}),
    "opus": frozenset({"OPUS"}),
}
"""What may lie in each, by libsndfile's names. Block codecs of WAV (ADPCM, GSM) are out: they pad the true length."""

INTEGER_CODECS = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ULAW", "ALAW"})
"""Decode to [-1, 1] whatever the bytes: their values need no look."""

MAX_DECODED_SECONDS = 600.0
"""Far above the 30 s a clip may last in training, far below what exhausts memory: a small file can decode to hours."""
MAX_CHANNELS = 8
MIN_SAMPLING_RATE_HZ = 4_000
MAX_SAMPLING_RATE_HZ = 192_000
MAX_PEAK = 16.0
"""Full scale is 1. Float files may exceed it a little; values in units of an integer format are a mistake."""
READ_SECONDS = 31
"""Decoded at once: a little more than the longest clip of training, so that it is never put together of blocks."""


def decode_audio(data: bytes, encoding: str, *, max_seconds: float = MAX_DECODED_SECONDS) -> Samples:
    """Decode to float32 mono at 16 kHz, shape (num_samples,); channels are averaged, other rates resampled (soxr HQ).

    Raises:
        ValueError: encoding not allowed, bytes of another container or codec, damaged or cut bytes, values that are not
            finite or far beyond full scale, or more than ``max_seconds`` of audio.
    """
    if encoding not in CONTAINERS:
        raise ValueError(f"encoding '{encoding}' is not one of {', '.join(CONTAINERS)}")
    try:
        with soundfile.SoundFile(io.BytesIO(whole_container(data, encoding))) as file:
            _check_container(file, encoding)
            mono = _read_mono(file, max_seconds)
            rate_hz, codec = file.samplerate, file.subtype
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{len(data)} bytes do not decode as {encoding}: {error.error_string}") from error
    if codec not in INTEGER_CODECS:
        _check_values(mono)
    if rate_hz == SAMPLING_RATE_HZ:
        return mono
    return np.asarray(soxr.resample(mono, rate_hz, SAMPLING_RATE_HZ, quality="HQ"), dtype=np.float32)


def encode_flac(samples: npt.NDArray[np.floating]) -> bytes:
    """16 kHz mono FLAC of 16 bits; ``samples`` of shape (num_samples,) in [-1, 1), louder values are clipped.

    Decoding the result and encoding it again gives the same bytes.
    """
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"samples of shape {samples.shape}; expected (num_samples,) with at least one")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold values that are not finite")
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLING_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _check_container(file: soundfile.SoundFile, encoding: str) -> None:
    if file.format not in CONTAINERS[encoding]:
        raise ValueError(f"bytes named {encoding} are {file.format}")
    if file.subtype not in CODECS[encoding]:
        allowed = ", ".join(sorted(CODECS[encoding]))
        raise ValueError(f"{encoding} of codec {file.subtype}; allowed are {allowed}: convert it to flac")
    if file.channels > MAX_CHANNELS:
        raise ValueError(f"{file.channels} channels; at most {MAX_CHANNELS}")
    if not MIN_SAMPLING_RATE_HZ <= file.samplerate <= MAX_SAMPLING_RATE_HZ:
        raise ValueError(f"sampling rate {file.samplerate} Hz; {MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz")


def _check_values(mono: Samples) -> None:
    # Smallest and largest carry NaN and infinity along, so that no array of flags or of absolutes is built.
    lowest, highest = float(mono.min(initial=0.0)), float(mono.max(initial=0.0))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError("decoded audio holds values that are not finite")
    peak = max(-lowest, highest)
    if peak > MAX_PEAK:
        raise ValueError(f"peak of {peak:g} where full scale is 1: float audio in units of an integer format? Scale it")


def _read_mono(file: soundfile.SoundFile, max_seconds: float) -> Samples:
    limit = int(max_seconds * file.samplerate)
    blocks: list[Samples] = []
    num_read = 0
    for block in _blocks(file, limit):
        num_read += len(block)
        if num_read > limit:
            raise ValueError(f"more than {max_seconds:g} s of audio")
        blocks.append(block)
    # When fewer samples come out than the file states up front, its end was cut off.
    if num_read != file.frames:
        raise ValueError(f"cut short: {num_read} of {file.frames} samples decoded")
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _blocks(file: soundfile.SoundFile, limit: int) -> Iterator[Samples]:
    # Block by block, so that a header that lies about its length cannot make us allocate it. Not mp3: soundfile seeks
    # after every read, and after a seek the first frames of an mp3 are wrong.
    block_length = limit + 1 if file.format in CONTAINERS["mp3"] else READ_SECONDS * file.samplerate
    while True:
        block = file.read(block_length, dtype="float32", always_2d=True)
        if len(block):
            yield block[:, 0] if file.channels == 1 else block.mean(axis=1, dtype=np.float32)
        if len(block) < block_length:
            return
