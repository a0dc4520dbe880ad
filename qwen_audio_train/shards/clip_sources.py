"""Where a corpus keeps its clips: in files, as spans of longer recordings, as sound tracks of videos, in archives.

``ReadClip`` functions for prepare.py, and the listing of archives. Archives are read from front to back and nothing is
extracted: names of members are matched and kept as text, never used as paths.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import av
import numpy as np
import soundfile
import soxr

from qwen_audio_train.audio.decode import (
    CONTAINERS,
    MAX_CHANNELS,
    MAX_DECODED_SECONDS,
    MAX_SAMPLING_RATE_HZ,
    Samples,
    encode_flac,
)
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import MAX_MEMBER_BYTES
from qwen_audio_train.shards.prepare import as_flac

VIDEO_CONTAINERS = frozenset({"mp4", "m4a", "mov"})
"""Suffixes whose audio track is taken. One demuxer reads them all; no other is tried, whatever the bytes look like."""
TRACK_CODECS = frozenset({"aac", "mp3", "mp3float", "opus", "libopus", "flac", "ac3", "pcm_s16le"})
MISSING_AT_END_SECONDS = 0.1
"""By so much a span may reach beyond its recording: time stamps are rounded."""
EXACT_SEEK = frozenset({"FLAC", "WAV", "WAVEX"})
"""Formats (and Opus) in which libsndfile seeks to the frame; in mp3 and Vorbis it can miss, so they are read from 0."""
MAX_UNSOUGHT_SECONDS = 3600
MAX_TRAILING_BYTES = 1 << 20
"""Padding after a tar's end mark."""
MAX_EXTENDED_HEADER_BYTES = 64 << 10
EXTENDED_HEADERS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)
GZIP_MAGIC = b"\x1f\x8b"

Media = str | tuple[bytes, str]
"""A path, or encoded bytes and their encoding (a suffix without its dot)."""


def read_media(media: Media) -> tuple[bytes, str]:
    """Audio, or the audio track of a video, as FLAC: FLAC bytes as they are, all else decoded, 16 kHz mono.

    Raises:
        ValueError: kind not allowed, too big, or it does not decode.
        OSError: the file cannot be read.
    """
    if isinstance(media, str):
        media = _bytes_of(Path(media))
    data, encoding = media
    if encoding in VIDEO_CONTAINERS:
        return encode_flac(decode_track(data)), "flac"
    return as_flac(data, encoding)


def decode_track(data: bytes, *, max_seconds: float = MAX_DECODED_SECONDS) -> Samples:
    """The first audio track of an MP4, float32 mono at 16 kHz, shape (num_samples,); channels are averaged.

    Raises:
        ValueError: damaged, no audio track, a codec that is not allowed, or more than ``max_seconds``.
    """
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            if not container.streams.audio:
                raise ValueError("the video has no audio track")
            codec = container.streams.audio[0].codec_context
            if codec.name not in TRACK_CODECS:
                raise ValueError(f"audio track of codec '{codec.name}'; allowed are {', '.join(sorted(TRACK_CODECS))}")
            if not 0 < codec.sample_rate <= MAX_SAMPLING_RATE_HZ or not 0 < codec.channels <= MAX_CHANNELS:
                raise ValueError(f"audio track of {codec.channels} channels at {codec.sample_rate} Hz")
            rate_hz = codec.sample_rate
            mono = _decode_frames(container, rate_hz, max_seconds)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes do not decode as mp4: {error}") from error
    return _at_16_khz(mono, rate_hz)


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a longer recording."""

    path: str
    begin_seconds: float
    end_seconds: float


def read_span(span: Span) -> tuple[bytes, str]:
    """The span's audio as 16 kHz FLAC; of formats in which seeking is exact, nothing else is decoded.

    Raises:
        ValueError: the span is empty, over ``MAX_DECODED_SECONDS``, outside of the recording, or does not decode.
        OSError: the file cannot be read.
    """
    length_seconds = span.end_seconds - span.begin_seconds
    if not (span.begin_seconds >= 0 and 0 < length_seconds <= MAX_DECODED_SECONDS):
        raise ValueError(f"span {span.begin_seconds} to {span.end_seconds} s; at most {MAX_DECODED_SECONDS:g} s")
    encoding = _encoding_of(Path(span.path), frozenset(CONTAINERS))
    try:
        with Path(span.path).open("rb") as stream, soundfile.SoundFile(stream) as file:
            if file.format not in CONTAINERS[encoding] or file.channels > MAX_CHANNELS:
                raise ValueError(f"'{span.path}' is {file.format} with {file.channels} channels, named {encoding}")
            begin, end = (round(seconds * file.samplerate) for seconds in (span.begin_seconds, span.end_seconds))
            blocks = _read_from(file, begin, end)
            rate_hz = file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"'{span.path}' does not decode as {encoding}: {error}") from error
    if (end - begin - len(blocks)) / rate_hz > MISSING_AT_END_SECONDS:
        raise ValueError(
            f"'{span.path}' ends {(end - begin - len(blocks)) / rate_hz:.2f} s before the span does "
            f"({span.begin_seconds} to {span.end_seconds} s)"
        )
    return encode_flac(_at_16_khz(blocks.mean(axis=1, dtype=np.float32), rate_hz)), "flac"


def archive_names(path: Path, *, inner: str | None = None) -> Iterator[str]:
    """Names of the regular files of a tar (see ``archive_files``), in order."""
    for _, member in _open_members(path, inner):
        yield member.name


def archive_files(
    path: Path, wanted: Callable[[str], bool], *, inner: str | None = None
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the wanted files of a tar, plain or gzipped, in order, read once from front to back.

    Args:
        wanted: of a member's full name.
        inner: base name of a tar inside that tar, to be read in its place.

    Raises:
        ShardError: cut or damaged archive; a link, a device, an absolute name or one with '..'; a wanted file over
            ``MAX_MEMBER_BYTES``; no member ``inner``.
    """
    for tar, member in _open_members(path, inner):
        if not wanted(member.name):
            continue
        if member.size > MAX_MEMBER_BYTES:
            raise ShardError(f"'{path}': '{member.name}' has {member.size} bytes; at most {MAX_MEMBER_BYTES}")
        with _as_shard_errors(path):
            file = tar.extractfile(member)
            data = file.read() if file is not None else b""
        if len(data) != member.size:
            raise ShardError(f"'{path}' ends within '{member.name}': it was cut off; fetch it again")
        yield member.name, data


class _StrictTarInfo(tarfile.TarInfo):
    """Makes tarfile raise where it would end in silence, and refuse headers that would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error
        if info.type in EXTENDED_HEADERS and info.size > MAX_EXTENDED_HEADER_BYTES:
            raise tarfile.ReadError(f"extended header of {info.size} bytes; at most {MAX_EXTENDED_HEADER_BYTES}")
        return info


@contextmanager
def _as_shard_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ShardError(f"'{path}' cannot be read as a tar: {error}; fetch it again") from error


def _open_members(path: Path, inner: str | None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _as_shard_errors(path), path.open("rb") as file:
        stream = _unpacked(file)
        if inner is not None:
            stream = _unpacked(_find_inner(stream, path, inner))
        with _tar_of(stream) as tar:
            for member in _regular_files(tar, path):
                yield tar, member
        # To its very end, because only there gzip keeps its checksum.
        if len(stream.read(MAX_TRAILING_BYTES)) == MAX_TRAILING_BYTES:
            raise ShardError(f"'{path}' goes on for over {MAX_TRAILING_BYTES} bytes after its end mark; fetch it again")


def _find_inner(stream: IO[bytes], path: Path, inner: str) -> IO[bytes]:
    tar = _tar_of(stream)
    for member in _regular_files(tar, path):
        if PurePosixPath(member.name).name == inner and (file := tar.extractfile(member)) is not None:
            return file
    raise ShardError(f"'{path}' has no member {inner}")


def _unpacked(file: IO[bytes]) -> Any:
    buffered: Any = io.BufferedReader(file)  # type: ignore[type-var]
    # Python's own gzip checks length and checksum; tarfile's stream mode does not.
    return gzip.GzipFile(fileobj=buffered) if buffered.peek(2).startswith(GZIP_MAGIC) else buffered


def _tar_of(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo)


def _regular_files(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        for member in tar:
            # tarfile keeps every member it has seen; of a million files that is a gigabyte.
            tar.members = []  # type: ignore[attr-defined]
            if member.isdir():
                continue
            name = PurePosixPath(member.name)
            if not member.isreg() or name.is_absolute() or ".." in name.parts:
                raise ShardError(f"member '{member.name}' is no regular file with a relative name")
            yield member
    except ShardError as error:
        raise ShardError(f"'{path}': {error}") from error


def _bytes_of(path: Path) -> tuple[bytes, str]:
    encoding = _encoding_of(path, VIDEO_CONTAINERS | frozenset(CONTAINERS))
    if path.stat().st_size > MAX_MEMBER_BYTES:
        raise ValueError(f"'{path}' is over {MAX_MEMBER_BYTES} bytes")
    return path.read_bytes(), encoding


def _encoding_of(path: Path, allowed: frozenset[str]) -> str:
    encoding = path.suffix.lower().removeprefix(".")
    if encoding not in allowed:
        raise ValueError(f"'{path}': suffix is not one of {', '.join(sorted(allowed))}")
    return encoding


def _decode_frames(container: Any, rate_hz: int, max_seconds: float) -> Samples:
    blocks: list[Samples] = []
    num_read = 0
    resampler = av.AudioResampler(format="fltp", rate=rate_hz)
    for frame in container.decode(audio=0):
        for block in resampler.resample(frame):
            blocks.append(block.to_ndarray().mean(axis=0, dtype=np.float32))
            num_read += len(blocks[-1])
        if num_read > max_seconds * rate_hz:
            raise ValueError(f"more than {max_seconds:g} s of audio")
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _read_from(file: soundfile.SoundFile, begin: int, end: int) -> Samples:
    """Frames of ``[begin, end)`` that exist, shape (num_frames, num_channels)."""
    if begin >= file.frames:
        raise ValueError(f"recording of {file.frames / file.samplerate:.2f} s ends before the span begins")
    if file.format in EXACT_SEEK or file.subtype == "OPUS":
        file.seek(begin)
        return np.asarray(file.read(end - begin, dtype="float32", always_2d=True))
    if end > MAX_UNSOUGHT_SECONDS * file.samplerate:
        raise ValueError(
            f"span of {file.format} over {MAX_UNSOUGHT_SECONDS} s from the start; convert it to FLAC first"
        )
    return np.asarray(file.read(end, dtype="float32", always_2d=True)[begin:])


def _at_16_khz(mono: Samples, rate_hz: int) -> Samples:
    if not np.isfinite(mono).all():
        raise ValueError("decoded audio holds values that are not finite")
    if rate_hz == SAMPLING_RATE_HZ:
        return mono
    return np.asarray(soxr.resample(mono, rate_hz, SAMPLING_RATE_HZ, quality="HQ"), dtype=np.float32)
