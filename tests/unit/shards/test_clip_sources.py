from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from qwen_audio_train.audio.decode import decode_audio
from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards import clip_sources
from qwen_audio_train.shards.clip_sources import Span, archive_files, archive_names, read_media, read_span


def sweep(seconds: float, rate_hz: int) -> np.ndarray:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (200 + 40 * t) * t)).astype(np.float32)


def video(seconds: float, *, channels: str = "stereo", audio: bool = True) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 16, 16, "yuv420p"
        track = container.add_stream("aac", rate=44_100, layout=channels) if audio else None
        black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux([*picture.encode(black), *picture.encode(None)])
        if track is not None:
            samples = np.tile(sweep(seconds, 44_100), (track.codec_context.channels, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=channels)
            frame.sample_rate = 44_100
            container.mux([*track.encode(frame), *track.encode(None)])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "subtype", "rate_hz"),
    [
        ("a.opus", "OPUS", 48_000),
        ("a.ogg", "VORBIS", 16_000),
        ("a.mp3", "MPEG_LAYER_III", 44_100),
        ("a.flac", "PCM_16", 16_000),
        ("a.wav", "PCM_16", 8_000),
    ],
)
def test_a_span_is_that_part_of_the_whole(tmp_path: Path, name: str, subtype: str, rate_hz: int) -> None:
    path = tmp_path / name
    formats = {"opus": "OGG", "ogg": "OGG"}
    soundfile.write(path, sweep(12.0, rate_hz), rate_hz, format=formats.get(path.suffix[1:]), subtype=subtype)
    whole = decode_audio(path.read_bytes(), path.suffix[1:])
    for begin, end in ((0.0, 0.5), (7.3, 9.1), (11.0, 12.0)):
        part = decode_audio(*read_span(Span(str(path), begin, end)))
        expected = whole[round(begin * 16_000) : round(end * 16_000)]
        assert abs(len(part) - len(expected)) <= 1
        inner = slice(400, min(len(part), len(expected)) - 400)  # resampling a cut rings at its edges
        assert np.abs(part[inner] - expected[inner]).max() < 2e-3


def test_a_span_decodes_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.opus"
    soundfile.write(path, sweep(5.0, 16_000), 16_000, format="OGG", subtype="OPUS")
    decoded = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **more: decoded.append(frames) or original(file, frames, **more),
    )
    read_span(Span(str(path), 3.0, 4.0))
    assert sum(decoded) == 16_000


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [
        (1.0, 1.0, "at most 600 s"),
        (-1.0, 1.0, "at most 600 s"),
        (0.0, 601.0, "at most 600 s"),
        (float("nan"), 1.0, "at most 600 s"),
        (1.5, 3.0, "ends 1.00 s before the span does"),
        (5.0, 6.0, "before the span begins"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_refuses_a_span_that_is_not_there(tmp_path: Path, name: str, begin: float, end: float, reason: str) -> None:
    soundfile.write(tmp_path / name, sweep(2.0, 16_000), 16_000)
    with pytest.raises(ValueError, match=reason):
        read_span(Span(str(tmp_path / name), begin, end))


def test_takes_the_sound_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video(1.0))
    samples = decode_audio(*read_media(str(path)))
    assert abs(len(samples) - 16_000) < 1100  # AAC comes in frames of 1024 at 44.1 kHz
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.03)
    assert read_media((path.read_bytes(), "mp4")) == read_media(str(path))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0" * 100, "do not decode as mp4"),
        (b"", "do not decode as mp4"),
        (video(0.5, audio=False), "no audio track"),
        (video(0.5)[:900], "do not decode as mp4"),
    ],
)
def test_refuses_a_video_without_readable_sound(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_media((data, "mp4"))


def test_a_playlist_named_mp4_opens_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, sweep(1.0, 16_000), 16_000)
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        with pytest.raises(ValueError, match="do not decode as mp4"):
            read_media((text.encode(), "mp4"))


def test_a_long_track_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"more than 0\.2 s"):
        clip_sources.decode_track(video(0.5), max_seconds=0.2)


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suffix is not one of"):
        read_media(str(tmp_path / "clip.avi"))


def tar_bytes(*files: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                tar.addfile(file)
                continue
            info = tarfile.TarInfo(file[0])
            info.size = len(file[1])
            tar.addfile(info, io.BytesIO(file[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


FILES = (("audio/one.wav", b"1" * 700), ("audio/" + "long" * 60 + ".wav", b"2"), ("readme.txt", b"3"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_lists_and_reads_an_archive(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "audio.tar.gz"
    path.write_bytes(tar_bytes(special("audio", tarfile.DIRTYPE), *FILES, mode=mode))
    assert list(archive_names(path)) == [name for name, _ in FILES]
    assert list(archive_files(path, lambda name: name.endswith(".wav"))) == list(FILES[:2])


def test_reads_an_archive_inside_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "raw.tar.gz"
    inner = tar_bytes(*FILES, mode="w:gz")
    path.write_bytes(tar_bytes(("raw/a.csv", b"x"), ("raw/dev.tar.gz", inner), ("raw/b", b""), mode="w:gz"))
    assert list(archive_files(path, lambda name: True, inner="dev.tar.gz")) == list(FILES)
    with pytest.raises(ShardError, match=r"raw.tar.gz' has no member test.tar.gz"):
        list(archive_names(path, inner="test.tar.gz"))


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.LNKTYPE, "audio/one.wav"),
        special("pipe", tarfile.FIFOTYPE),
        special("/etc/passwd", tarfile.REGTYPE),
        special("audio/../../x.wav", tarfile.REGTYPE),
    ],
)
def test_refuses_links_and_names_that_lead_out(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(tar_bytes(FILES[0], member))
    with pytest.raises(ShardError, match=r"bad.tar'.* is no regular file with a relative name"):
        list(archive_names(path))


def damaged_archives() -> dict[str, bytes]:
    plain = tar_bytes(*FILES)
    header_of_second = 512 + 1024
    packed = gzip.compress(plain)
    return {
        "cut in a file": plain[:900],
        "cut before a header": plain[:header_of_second],
        "damaged header": plain[:header_of_second] + b"\x55" * 512 + plain[header_of_second + 512 :],
        "cut gzip": packed[: len(packed) - 12],
        "gzip checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
        "no tar": b"hello" * 300,
        "empty": b"",
    }


@pytest.mark.parametrize("kind", damaged_archives())
def test_never_ends_an_archive_in_silence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "damaged.tar.gz"
    path.write_bytes(damaged_archives()[kind])
    with pytest.raises(ShardError, match=r"damaged\.tar\.gz'"):
        list(archive_files(path, lambda name: True))


def test_refuses_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    bomb = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    bomb.size = 1 << 33
    path = tmp_path / "bomb.tar"
    path.write_bytes(bomb.tobuf(format=tarfile.GNU_FORMAT) + b"x" * 2048)
    with pytest.raises(ShardError, match=r"bomb.tar' .*extended header of 8589934592 bytes"):
        list(archive_names(path))


def test_refuses_a_member_over_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_sources, "MAX_MEMBER_BYTES", 600)
    path = tmp_path / "big.tar"
    path.write_bytes(tar_bytes(*FILES))
    with pytest.raises(ShardError, match=r"'audio/one.wav' has 700 bytes; at most 600"):
        list(archive_files(path, lambda name: True))
    assert len(list(archive_files(path, lambda name: "one" not in name))) == 2
