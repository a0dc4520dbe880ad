"""MP3 without a frame count: count its frames and say so in front, as an encoder would have.

libsndfile 1.2 guesses the length of such a file from its first frame's bit rate and stops there: a variable-rate
recording that starts loud loses its end (20 s can come out as 4 s) without an error. With a Xing frame it reads all.
"""

from __future__ import annotations

from dataclasses import dataclass

BIT_RATES_KBIT = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Layer III by version bits (3: MPEG-1, 2 and 0: MPEG-2 and 2.5); index 0 of the header is 'free', 15 is invalid."""
RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
HEADER_BYTES = 4
COUNTED = (b"Xing", b"Info", b"VBRI")
TAGS_AT_THE_END = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
HAS_FRAME_COUNT = 1


@dataclass(frozen=True, slots=True)
class _Frame:
    num_bytes: int
    side_info_bytes: int


def with_frame_count(data: bytes) -> bytes:
    """``data``, with a Xing frame in front of its frames if it has none.

    Raises:
        ValueError: no MP3, or one without a frame count that is cut or damaged.
    """
    start = _after_id3(data)
    first = _frame_at(data, start)
    if first is None:
        raise ValueError(f"no mp3 frame at byte {start}: cut, damaged, or of another format")
    if any(mark in data[start : start + first.num_bytes] for mark in COUNTED):
        return data
    num_frames = _count_frames(data, start)
    tag = b"Xing" + HAS_FRAME_COUNT.to_bytes(4, "big") + num_frames.to_bytes(4, "big")
    head = data[start : start + HEADER_BYTES] + bytes(first.side_info_bytes) + tag
    if len(head) > first.num_bytes:
        raise ValueError("mp3 of too low a bit rate to be counted; convert it to flac")
    return data[:start] + head.ljust(first.num_bytes, b"\0") + data[start:]


def _count_frames(data: bytes, start: int) -> int:
    num_frames = 0
    while start < len(data) and not data.startswith(TAGS_AT_THE_END, start) and data[start:].strip(b"\0"):
        frame = _frame_at(data, start)
        if frame is None:
            raise ValueError(f"no mp3 frame at byte {start}: cut or damaged")
        start += frame.num_bytes
        if start > len(data):
            raise ValueError("cut short: inside the last mp3 frame")
        num_frames += 1
    return num_frames


def _after_id3(data: bytes) -> int:
    if not data.startswith(b"ID3") or len(data) < 10:
        return 0
    num_bytes = 0
    for byte in data[6:10]:  # seven bits each
        num_bytes = num_bytes << 7 | byte & 0x7F
    has_footer = bool(data[5] & 0x10)
    return 10 + num_bytes + 10 * has_footer


def _frame_at(data: bytes, start: int) -> _Frame | None:
    header = int.from_bytes(data[start : start + HEADER_BYTES], "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    bit_rate, rate, padding, mode = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1, header >> 6 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or bit_rate in (0, 15) or rate == 3:
        return None
    kbit = BIT_RATES_KBIT[3 if version == 3 else 2][bit_rate - 1]
    bytes_per_rate = 144_000 if version == 3 else 72_000
    num_bytes = bytes_per_rate * kbit // RATES_HZ[version][rate] + padding
    is_mono = mode == 3
    side_info = (17 if is_mono else 32) if version == 3 else (9 if is_mono else 17)
    return _Frame(num_bytes, side_info)
