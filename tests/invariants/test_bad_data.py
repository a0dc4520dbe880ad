"""Bad data, row by row: what comes in, what happens, and the proof. ``docs/bad_data.md`` is this module's ``table()``.

Why audio never meets another sample's text: the text and the sha256 of its audio lie in one JSON member; the index row
that names the member carries a hash of the key, compared with the tar header before the JSON on every read; and audio
bytes are used only if they hash to what that JSON states. An index, a tar or a copy that points elsewhere fails one.
"""

# ruff: noqa: E501 - a case is a line

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from qwen_audio_train.audio.decode import decode_audio
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards.check import check_set
from qwen_audio_train.shards.dataset import describe_set
from qwen_audio_train.shards.index import build_index, index_path
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.writer import ShardWriter

DOCS = Path(__file__).resolve().parents[2] / "docs" / "bad_data.md"
RATE_HZ = 16_000
PAYLOAD = {"task": "transcribe", "audio_language": "en", "text_language": "en", "source": "toy", "license": "CC0-1.0"}


def tone(num_samples: int, rate_hz: int = RATE_HZ, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate_hz)).astype(np.float32)


def encoded(container: str, codec: str, audio: np.ndarray | None = None, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(RATE_HZ) if audio is None else audio, rate_hz, format=container, subtype=codec or None)
    return buffer.getvalue()


def with_sizes(data_bytes: int, riff_bytes: int) -> bytes:
    wav = bytearray(encoded("WAV", "PCM_16"))
    struct.pack_into("<I", wav, 4, riff_bytes)
    struct.pack_into("<I", wav, wav.index(b"data") + 4, data_bytes)
    return bytes(wav)


def without_xing(audio: np.ndarray) -> bytes:
    """A variable-rate MP3 as encoders write it to a pipe: no frame count."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE_HZ)
        stream.codec_context.flags |= 2  # by quality
        stream.codec_context.global_quality = 118 * 4
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
        frame.sample_rate = RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def without_length(flac: bytes) -> bytes:
    """As an encoder leaves it that writes to a pipe: a total of 0 samples, in the last 36 bits of bytes 18 to 26."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def spiked(value: float) -> np.ndarray:
    audio = tone(RATE_HZ)
    audio[5] = value
    return audio


NOISE = (0.3 * np.random.default_rng(0).standard_normal(RATE_HZ)).astype(np.float32)


@dataclass(frozen=True)
class Sound:
    """Audio that is decoded right: equal to ``reference`` within ``tolerance``, and of its length."""

    name: str
    make: Callable[[], tuple[bytes, str]]
    reference: Callable[[], np.ndarray]
    tolerance: float
    note: str = ""


def resampled(rate_hz: int) -> np.ndarray:
    return soxr.resample(tone(rate_hz + 1, rate_hz), rate_hz, RATE_HZ, quality="HQ")


def wav(codec: str) -> Callable[[], tuple[bytes, str]]:
    return lambda: (encoded("WAV", codec), "wav")


def wav_at(rate_hz: int) -> Callable[[], tuple[bytes, str]]:
    return lambda: (encoded("WAV", "PCM_16", tone(rate_hz + 1, rate_hz), rate_hz), "wav")


def second() -> np.ndarray:
    return tone(RATE_HZ)


LOUD_THEN_STILL = np.concatenate([NOISE, np.zeros(4 * RATE_HZ, np.float32)])
STEREO = np.stack([tone(RATE_HZ), np.zeros(RATE_HZ, np.float32)], axis=1)
SOUND = [
    Sound("16-bit flac", lambda: (encoded("FLAC", "PCM_16"), "flac"), second, 2**-15),
    Sound("24-bit flac", lambda: (encoded("FLAC", "PCM_24"), "flac"), second, 2**-23),
    Sound("8-bit wav", wav("PCM_U8"), second, 2**-6),
    Sound("16-bit wav", wav("PCM_16"), second, 2**-15),
    Sound("24-bit wav", wav("PCM_24"), second, 2**-23),
    Sound("32-bit wav", wav("PCM_32"), second, 1e-7),
    Sound("float32 wav", wav("FLOAT"), second, 0.0),
    Sound("mu-law wav", wav("ULAW"), second, 0.02),
    Sound("A-law wav", wav("ALAW"), second, 0.02),
    Sound("WAVE_EXTENSIBLE", lambda: (encoded("WAVEX", "PCM_16"), "wav"), second, 2**-15),
    Sound("streamed wav, sizes 0xFFFFFFFF", lambda: (with_sizes(2**32 - 1, 2**32 - 1), "wav"), second, 2**-15),
    Sound("streamed wav, sizes 0x7FFFF000", lambda: (with_sizes(0x7FFFF000, 0x7FFFF024), "wav"), second, 2**-15),
    Sound("streamed wav, sizes 0", lambda: (with_sizes(0, 0), "wav"), second, 2**-15, "length taken from the bytes"),
    Sound("wav with chunks after the data", lambda: (encoded("WAV", "PCM_16") + b"LIST\4\0\0\0abcd", "wav"), second, 2**-15),
    Sound("stereo", lambda: (encoded("FLAC", "PCM_16", STEREO), "flac"), lambda: second() / 2, 2**-15, "averaged"),
    Sound("8 kHz", wav_at(8_000), lambda: resampled(8_000), 1e-4, "resampled"),
    Sound("44.1 kHz", wav_at(44_100), lambda: resampled(44_100), 1e-4, "resampled"),
    Sound("48 kHz", wav_at(48_000), lambda: resampled(48_000), 1e-4, "resampled"),
    Sound("mp3", lambda: (encoded("MP3", "MPEG_LAYER_III"), "mp3"), second, 0.02),
    Sound("opus", lambda: (encoded("OGG", "OPUS"), "opus"), second, 0.1),
    Sound("ogg vorbis", lambda: (encoded("OGG", "VORBIS"), "ogg"), second, 0.05),
    Sound("silence (all zero)", lambda: (encoded("FLAC", "PCM_16", np.zeros(1600)), "flac"), lambda: np.zeros(1600), 0.0,
          "legal; `check_shards` warns"),
    Sound("321 samples", lambda: (encoded("FLAC", "PCM_16", tone(321)), "flac"), lambda: tone(321), 2**-15),
]  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """Audio that is refused with ``reason``: by the writer, and on reading from a tar that another tool wrote."""

    name: str
    make: Callable[[], tuple[bytes, str]]
    reason: str
    num_samples: int = RATE_HZ


def cut(container: str, codec: str, encoding: str) -> Callable[[], tuple[bytes, str]]:
    def make() -> tuple[bytes, str]:
        data = encoded(container, codec, NOISE)
        return data[: len(data) * 6 // 10], encoding

    return make


BROKEN = [
    Broken("flac, bytes flipped in a frame", lambda: (flipped(encoded("FLAC", "PCM_16", NOISE), 9000), "flac"), "does not decode|do not decode"),
    Broken("flac, cut", cut("FLAC", "PCM_16", "flac"), "do not decode|cut short"),
    Broken("flac without its length", lambda: (without_length(encoded("FLAC", "PCM_16")), "flac"), "without its number of samples"),
    Broken("wav, cut", cut("WAV", "PCM_16", "wav"), "cut short"),
    Broken("mp3, cut", cut("MP3", "MPEG_LAYER_III", "mp3"), "cut short"),
    Broken("opus, cut", cut("OGG", "OPUS", "opus"), "cut"),
    Broken("ogg vorbis, cut", cut("OGG", "VORBIS", "ogg"), "cut"),
    Broken("opus, byte flipped", lambda: (flipped(encoded("OGG", "OPUS", NOISE), 3000), "opus"), "checksum differs|no ogg page"),
    Broken("two ogg files in one", lambda: (encoded("OGG", "VORBIS") * 2, "ogg"), "more than one stream"),
    Broken("NaN in float wav", lambda: (encoded("WAV", "FLOAT", spiked(math.nan)), "wav"), "not finite"),
    Broken("infinity in float wav", lambda: (encoded("WAV", "FLOAT", spiked(-math.inf)), "wav"), "not finite"),
    Broken("float wav in integer units", lambda: (encoded("WAV", "FLOAT", spiked(20_000.0)), "wav"), "peak of 20000"),
    Broken("ADPCM wav", lambda: (encoded("WAV", "IMA_ADPCM"), "wav"), "codec IMA_ADPCM"),
    Broken("vorbis named opus", lambda: (encoded("OGG", "VORBIS"), "opus"), "codec VORBIS"),
    Broken("wav named flac", lambda: (encoded("WAV", "PCM_16"), "flac"), "named flac are WAV"),
    Broken("small file that decodes to hours", lambda: (encoded("FLAC", "PCM_16", np.zeros(8_000 * 700), 8_000), "flac"), "more than 600 s"),
    Broken("zero bytes", lambda: (b"", "flac"), "do not decode"),
    Broken("zero samples", lambda: (encoded("WAV", "PCM_16", tone(0)), "wav"), "clip of 0 samples", 0),
    Broken("320 samples", lambda: (encoded("WAV", "PCM_16", tone(320)), "wav"), "clip of 320 samples", 320),
    Broken("over 30 s", lambda: (encoded("FLAC", "PCM_16", tone(480_001)), "flac"), "clip of 480001 samples", 480_001),
]  # fmt: skip

TarBytes = bytes


def metadata(audio: bytes, encoding: str, num_samples: int, **changes: Any) -> bytes:
    clip = {"num_samples": num_samples, "sha256": hashlib.sha256(audio).hexdigest(), "encoding": encoding}
    return json.dumps({**PAYLOAD, "split": "train", "text": "please", "clips": [clip], **changes}).encode()


def tar_of(members: list[tuple[str, bytes] | tarfile.TarInfo], tar_format: int = tarfile.USTAR_FORMAT) -> TarBytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


FLAC = encoded("FLAC", "PCM_16", tone(1600))
OTHER_FLAC = encoded("FLAC", "PCM_16", tone(1600, hertz=220.0))
META = metadata(FLAC, "flac", 1600)


def sample(key: str) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    return [(f"{key}.flac", FLAC), (f"{key}.json", META)]


def special(name: str, kind: bytes) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return [info, ("a.json", META)]


def renamed(old: bytes, new: bytes) -> TarBytes:
    """Names that Python's tarfile would not write; the header's checksum is made right."""
    raw = bytearray(tar_of(sample("a") + sample("b")).replace(old.ljust(100, b"\0"), new.ljust(100, b"\0"), 1))
    start = raw.index(new.ljust(100, b"\0"))
    raw[start + 148 : start + 156] = b" " * 8
    total = sum(raw[start : start + 512])
    raw[start + 148 : start + 156] = f"{total:06o}\0 ".encode()
    return bytes(raw)


WHOLE = tar_of([*sample("a"), *sample("b")])
DATA_END = len(WHOLE.rstrip(b"\0")) // 512 * 512 + 512
TARS: dict[str, tuple[Callable[[], TarBytes], str]] = {
    "tar cut at a header": (lambda: WHOLE[: DATA_END // 2 // 512 * 512 + 100], "cut off"),
    "tar cut inside a member": (lambda: WHOLE[:1000], "cut off"),
    "tar cut before the end mark": (lambda: WHOLE[:DATA_END], "cut off"),
    "tar cut inside the end mark": (lambda: WHOLE[: DATA_END + 512], "cut off"),
    "unfinished copy: zeros to the full size": (lambda: WHOLE[:DATA_END] + bytes(3 << 20), "unfinished copy"),
    "two concatenated tars": (lambda: WHOLE + tar_of(sample("c")), "must not be concatenated"),
    "garbage after the end": (lambda: WHOLE + b"garbage", "data after its end-of-archive"),
    "damaged header": (lambda: flipped(WHOLE, 3), "damaged header"),
    "gzip bomb (compressed tar)": (lambda: gzip.compress(bytes(1 << 24)), "is compressed"),
    "missing member (no audio)": (lambda: tar_of([("a.json", META)]), "sample 'a' has clip members"),
    "missing member (no json)": (lambda: tar_of([("a.flac", FLAC)]), "sample 'a' has members flac"),
    "duplicate key": (lambda: tar_of([*sample("a"), *sample("b"), *sample("a")]), "key 'a' twice"),
    "interleaved members": (lambda: tar_of([("a.flac", FLAC), ("b.flac", FLAC), ("a.json", META), ("b.json", META)]), "sample 'a'"),
    "symlink": (lambda: tar_of(special("a.flac", tarfile.SYMTYPE)), "no regular file"),
    "hardlink": (lambda: tar_of(special("a.flac", tarfile.LNKTYPE)), "no regular file"),
    "device": (lambda: tar_of(special("a.flac", tarfile.CHRTYPE)), "no regular file"),
    "fifo": (lambda: tar_of(special("a.flac", tarfile.FIFOTYPE)), "no regular file"),
    "absolute path": (lambda: tar_of(sample("/etc/a")), "key '/etc/a'"),
    "`..` in a path": (lambda: tar_of(sample("../a")), "'../a.flac' has key"),
    "pickle (.pkl)": (lambda: tar_of([*sample("a"), ("a.pkl", pickle.dumps({}))]), "unknown suffix 'pkl'"),
    "pickle (.pth)": (lambda: tar_of([*sample("a"), ("a.pth", pickle.dumps({}))]), "unknown suffix 'pth'"),
    "compressed member (.json.gz)": (lambda: tar_of([("a.json.gz", gzip.compress(META))]), "unknown suffix 'json.gz'"),
    "unknown suffix": (lambda: tar_of([*sample("a"), ("a.txt", b"x")]), "unknown suffix 'txt'"),
    "key with a dot": (lambda: tar_of(sample("a.b")), "unknown suffix 'b.flac'"),
    "non-UTF-8 name": (lambda: renamed(b"a.flac", b"\xff\xfe.flac"), "damaged header"),
    "control characters in a name": (lambda: renamed(b"a.flac", b"a\x1b[2J.flac"), r"has key 'a\\x1b"),
    "pax path override": (lambda: tar_of(sample("k" * 120), tarfile.PAX_FORMAT), "pax headers"),
    "GNU long name": (lambda: tar_of(sample("k" * 120), tarfile.GNU_FORMAT), "no regular file"),
    "giant json": (lambda: tar_of([("a.flac", FLAC), ("a.json", b'"' + b"x" * (1 << 20) + b'"')]), "at most 1048576"),
    "deeply nested json": (lambda: tar_of([("a.flac", FLAC), ("a.json", b"[" * 100_000)]), "deeper than 16"),
    "broken json": (lambda: tar_of([("a.flac", FLAC), ("a.json", META[:-1])]), "sample 'a'"),
    "json field twice": (lambda: tar_of([("a.flac", FLAC), ("a.json", META[:-1] + b',"text":"no"}')]), "'text' twice"),
    "NaN in json": (lambda: tar_of([("a.flac", FLAC), ("a.json", META[:-1] + b',"x":NaN}')]), "NaN"),
    "number beyond floats in json": (lambda: tar_of([("a.flac", FLAC), ("a.json", META[:-1] + b',"x":1e999}')]), "1e999"),
    "half a surrogate pair in json": (lambda: tar_of([("a.flac", FLAC), ("a.json", META.replace(b"please", b"\\ud800"))]), "surrogates"),
    "non-UTF-8 text": (lambda: tar_of([("a.flac", FLAC), ("a.json", META.replace(b"please", b"\xff"))]), "sample 'a'"),
    "empty text": (lambda: tar_of([("a.flac", FLAC), ("a.json", META.replace(b"please", b" "))]), "'text' is ' '"),
    "tar without a sample": (lambda: tar_of([]), "holds no sample"),
}  # fmt: skip


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "# Bad data: what comes in, what happens",
        "",
        "Made of the cases in `tests/invariants/test_bad_data.py` by `python scripts/update_golden.py`; a test keeps it so.",
        "Every error names data set, shard and, where it is about a sample, its key.",
        "",
        "| input | what happens | test |",
        "|---|---|---|",
    ]
    for row in SOUND:
        exactness = "bit-equal" if row.tolerance == 0 else f"within {row.tolerance:.1e}"
        note = f"; {row.note}" if row.note else ""
        lines.append(
            f"| {row.name} | decoded: {exactness} of the reference, exact length{note} | `test_decodes_right` |"
        )
    for broken in BROKEN:
        what = "refused by the writer; from a foreign tar `SampleError` on reading, error in `check_shards`"
        lines.append(f"| {broken.name} | {what} | `test_refuses_broken_audio` |")
    for name in TARS:
        lines.append(
            f"| {name} | `ShardError` on indexing: no index, nothing of the tar is read | `test_refuses_the_tar` |"
        )
    for test, (name, what) in AFTER_INDEXING.items():
        lines.append(f"| {name} | {what} | `{test}` |")
    return "\n".join(lines) + "\n"


ON_READING = "`SampleError` on reading, error in `check_shards`"
AFTER_INDEXING = {
    "test_wrong_length": ("wrong length in the metadata", ON_READING),
    "test_wrong_checksum": ("wrong checksum in the metadata", ON_READING),
    "test_exchanged_audio": ("another sample's audio under this key", ON_READING),
    "test_audio_exchanged_behind_the_index": ("two clips exchanged in a tar after indexing", ON_READING),
    "test_a_shard_in_the_place_of_another": ("a shard in the place of another", "`ShardError` when it is first read from"),
    "test_random_damage_before_indexing": ("flips, cuts, splices at random, then indexed", "the original sample, or a named error"),
    "test_changed_text_after_indexing": ("a letter of the text changed in a tar after indexing", ON_READING),
    "test_random_damage_after_indexing": ("flips, cuts, splices at random, after indexing", "the original sample, or a named error"),
}  # fmt: skip


def foreign_set(folder: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> ShardSet:
    """A set as another tool would have written it: only the tar's structure has been checked."""
    folder.mkdir(exist_ok=True)
    (folder / "toy-000000.tar").write_bytes(tar_of(members))
    describe_set(folder, "toy", reindex=True)
    return ShardSet.open(folder)


def expect_bad(shards: ShardSet, key: str, reason: str) -> None:
    """Reading the sample fails with its name; check says the same; its neighbours are read."""
    for i in range(len(shards)):
        record = shards.record(i)
        if record.origin.key == key:
            with pytest.raises(SampleError, match=reason) as caught:
                shards.read_clip(record.clips[0], record.origin)
            assert str(caught.value).startswith(f"sample '{key}' in shard 'toy-000000.tar' of dataset 'toy': ")
        else:
            shards.read_clip(record.clips[0], record.origin)
    found = [(finding.shard, finding.key) for finding in check_set(shards.directory).errors]
    assert found == [("toy-000000.tar", key)]


@pytest.mark.parametrize("row", SOUND, ids=lambda row: row.name)
def test_decodes_right(tmp_path: Path, row: Sound) -> None:
    reference = np.asarray(row.reference(), np.float32)
    with ShardWriter(tmp_path, "toy", split="train", license="CC0-1.0") as writer:
        writer.write("a", [row.make()], {**PAYLOAD, "text": "x"})
    shards = ShardSet.open(tmp_path)
    record = shards.record(0)
    audio = shards.read_clip(record.clips[0], record.origin)
    assert len(audio) == len(reference) == record.clips[0].num_samples
    inner = slice(0, -200 if "opus" in row.name else None)  # its encoder lets the last few ms ring
    np.testing.assert_allclose(audio[inner], reference[inner], rtol=0, atol=row.tolerance)
    report = check_set(tmp_path)
    assert report.errors == []
    assert bool(report.warnings) == ("silence" in row.name)


def test_resampled_lengths_are_rounded() -> None:
    for rate_hz in (8_000, 11_025, 22_050, 44_100, 48_000):
        for num_samples in (777, 12_345, rate_hz + 1):
            audio = decode_audio(encoded("WAV", "PCM_16", tone(num_samples, rate_hz), rate_hz), "wav")
            assert len(audio) == round(num_samples * RATE_HZ / rate_hz)


def test_mp3_without_frame_count_is_read_to_its_end() -> None:
    """libsndfile alone returns a fraction of it: it guesses the length from the first, loud frames."""
    data = without_xing(LOUD_THEN_STILL)
    assert len(soundfile.read(io.BytesIO(data))[0]) < len(LOUD_THEN_STILL) // 2
    audio = decode_audio(data, "mp3")
    assert len(LOUD_THEN_STILL) <= len(audio) < len(LOUD_THEN_STILL) + 3 * 1152
    assert np.sqrt(np.mean(audio[1200:14_000] ** 2)) > 0.2
    assert np.abs(audio[2 * RATE_HZ :]).max() < 1e-3
    with pytest.raises(ValueError, match="cut short"):
        decode_audio(data[:-10], "mp3")


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row.name)
def test_refuses_broken_audio(tmp_path: Path, row: Broken) -> None:
    audio, encoding = row.make()
    writer = ShardWriter(tmp_path / "ours", "toy", split="train", license="CC0-1.0")
    with pytest.raises(SampleError, match=row.reason):
        writer.write("a", [(audio, encoding)], {**PAYLOAD, "text": "x"})
    bad = [(f"bad.{encoding}", audio), ("bad.json", metadata(audio, encoding, row.num_samples))]
    shards = foreign_set(tmp_path / "theirs", [*sample("a"), *bad, *sample("b")])
    expect_bad(shards, "bad", row.reason)


@pytest.mark.parametrize("name", TARS)
def test_refuses_the_tar(tmp_path: Path, name: str) -> None:
    make, reason = TARS[name]
    path = tmp_path / "toy-000000.tar"
    path.write_bytes(make())
    with pytest.raises(ShardError, match=reason) as caught:
        build_index(path)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not index_path(path).exists()


def test_wrong_length(tmp_path: Path) -> None:
    bad = [("bad.flac", FLAC), ("bad.json", metadata(FLAC, "flac", 1601))]
    expect_bad(foreign_set(tmp_path, [*sample("a"), *bad]), "bad", "has 1600 samples at 16 kHz, its metadata says 1601")


def test_wrong_checksum(tmp_path: Path) -> None:
    bad = [("bad.flac", flipped(FLAC, 500)), ("bad.json", META)]
    expect_bad(foreign_set(tmp_path, [*sample("a"), *bad, *sample("b")]), "bad", "checksum")


def test_exchanged_audio(tmp_path: Path) -> None:
    """Same length, decodes, but it is not the audio that this text was written for."""
    bad = [("bad.flac", OTHER_FLAC), ("bad.json", META)]
    expect_bad(foreign_set(tmp_path, [*sample("a"), *bad]), "bad", "checksum")


def test_audio_exchanged_behind_the_index(tmp_path: Path) -> None:
    other = [("b.wav", encoded("WAV", "PCM_16", tone(1600, hertz=220.0)))]
    other.append(("b.json", metadata(other[0][1], "wav", 1600)))
    mine = [("a.wav", encoded("WAV", "PCM_16", tone(1600)))]
    mine.append(("a.json", metadata(mine[0][1], "wav", 1600)))
    padding = [entry for number in range(8) for entry in sample(f"p{number}")]  # beyond the ends that opening compares
    shards = foreign_set(tmp_path, [*padding, *mine, *other, *padding_named(padding)])
    path = tmp_path / "toy-000000.tar"
    raw = bytearray(path.read_bytes())
    first, second_ = raw.index(mine[0][1]), raw.index(other[0][1])
    raw[first : first + len(mine[0][1])], raw[second_ : second_ + len(mine[0][1])] = other[0][1], mine[0][1]
    path.write_bytes(raw)
    shards = ShardSet.open(tmp_path)
    for i in range(len(shards)):
        record = shards.record(i)
        if record.origin.key in ("a", "b"):
            with pytest.raises(SampleError, match="checksum"):
                shards.read_clip(record.clips[0], record.origin)
    assert {finding.key for finding in check_set(tmp_path).errors} == {"", "a", "b"}


def test_changed_text_after_indexing(tmp_path: Path) -> None:
    """Still JSON, still a legal text, and the audio is right: only the checksum of the metadata can tell."""
    padding = [entry for number in range(8) for entry in sample(f"p{number}")]  # beyond the ends that opening compares
    foreign_set(tmp_path, [*padding, *sample("bad"), *padding_named(padding)])
    path = tmp_path / "toy-000000.tar"
    raw = path.read_bytes()
    at = raw.index(b'"text"', raw.index(b"bad.json\0")) + len(b'"text": "')
    path.write_bytes(flipped(raw, at))
    shards, refused = ShardSet.open(tmp_path), []
    for i in range(len(shards)):
        try:
            shards.record(i)
        except SampleError as error:
            refused.append(str(error).partition(" at byte ")[0])
    assert refused == ["sample 'bad' in shard 'toy-000000.tar' of dataset 'toy': checksum of the metadata"]
    assert "" in {finding.key for finding in check_set(tmp_path).errors}


def padding_named(members: list[Any]) -> list[Any]:
    return [("q" + name, data) for name, data in members]


def test_a_shard_in_the_place_of_another(tmp_path: Path) -> None:
    foreign_set(tmp_path, sample("a"))
    (tmp_path / "toy-000000.tar").write_bytes(tar_of(sample("b")))
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ShardError, match="is not the tar indexed"):
        shards.record(0)


def small_tar() -> tuple[TarBytes, dict[str, tuple[str, bytes]]]:
    """Four samples of equal size, and what each key must give: its text and its audio."""
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    truth = {}
    for number, key in enumerate("abcd"):
        audio = encoded("WAV", "PCM_16", tone(400, hertz=200.0 + 50 * number))
        text = f"text {number}"
        members += [(f"{key}.wav", audio), (f"{key}.json", metadata(audio, "wav", 400, text=text))]
        truth[key] = (text, decode_audio(audio, "wav").tobytes())
    return tar_of(members)[: 8 * 2048 + 1024], truth


def damaged(tar: TarBytes, generator: np.random.Generator) -> TarBytes:
    """One flip, cut or splice."""
    kind, at = int(generator.integers(3)), int(generator.integers(len(tar)))
    if kind == 0:
        return tar[:at] + bytes([tar[at] ^ (1 << int(generator.integers(8)))]) + tar[at + 1 :]
    if kind == 1:
        return tar[:at]
    length = int(generator.integers(1, 2048))
    source = int(generator.integers(len(tar) - length))
    at = min(at, len(tar) - length)
    if generator.integers(2):  # whole blocks: the headers stay headers
        at, source, length = at // 512 * 512, source // 512 * 512, -(-length // 512) * 512
    return tar[:at] + tar[source : source + length] + tar[at + length :]


def read_pairs(shards: ShardSet) -> dict[str, tuple[str, bytes]]:
    """Every sample that can be read; named errors are passed over, any other is a failure."""
    pairs = {}
    for i in range(len(shards)):
        try:
            record = shards.record(i)
            audio = shards.read_clip(record.clips[0], record.origin)
        except (SampleError, ShardError):
            continue
        pairs[record.origin.key] = (record.text, audio.tobytes())
    return pairs


def test_random_damage_before_indexing(tmp_path: Path) -> None:
    """What passes for another text was another text when it was indexed; the audio is still the one it names."""
    tar, truth = small_tar()
    audio_of = {audio for _, audio in truth.values()}
    generator, num_indexed, num_same = np.random.default_rng(7), 0, 0
    path = tmp_path / "toy-000000.tar"
    for _ in range(120):
        path.write_bytes(damaged(tar, generator))
        try:
            describe_set(tmp_path, "toy", reindex=True)
            pairs = read_pairs(ShardSet.open(tmp_path))
        except ShardError:
            continue
        num_indexed += 1
        for key, (text, audio) in pairs.items():
            assert audio in audio_of
            num_same += truth.get(key) == (text, audio)
            if key in truth and text in {stated for stated, _ in truth.values()}:
                stated_key = next(name for name, (stated, _) in truth.items() if stated == text)
                assert audio == truth[stated_key][1], "a text of one sample with the audio of another"
    assert num_indexed > 10
    assert num_same > 25


def test_random_damage_after_indexing(tmp_path: Path) -> None:
    tar, truth = small_tar()
    path = tmp_path / "toy-000000.tar"
    path.write_bytes(tar)
    describe_set(tmp_path, "toy", reindex=True)
    shards = ShardSet.open(tmp_path)
    read_pairs(shards)  # opened: from here on the ends are not compared again
    generator, num_read = np.random.default_rng(8), 0
    for _ in range(300):
        raw = damaged(tar, generator)
        with path.open("r+b") as file:
            file.write(raw)
            file.truncate()
        for key, pair in read_pairs(shards).items():
            num_read += 1
            assert pair == truth[key]
    assert num_read > 500


def test_the_document_is_in_step() -> None:
    assert DOCS.read_text(encoding="utf-8") == table(), "run scripts/update_golden.py"
    for test in AFTER_INDEXING:
        assert test in globals()
