"""What a container says of itself and libsndfile does not hold it to: where a WAV ends, whether an Ogg is whole.

libsndfile decodes what is there and calls it the file. So a recording that lost its end in a copy would be measured,
checksummed and trained on as a shorter one, with the whole recording's text. Here its own headers are believed instead.
A WAV that was streamed to a pipe, and an MP3 without a frame count that was cut between two frames, cannot tell.
"""

from __future__ import annotations

import struct
import zlib

from qwen_audio_train.audio.mpeg import with_frame_count

STREAMED_BYTES = 0x7FFFF000
"""WAV sizes from here on mean 'until the end': the writer could not seek back (sox 0x7ffff000, ffmpeg 0xffffffff)."""
OGG_HEADER_BYTES = 27
OGG_FIRST, OGG_LAST = 2, 4
REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
FLAC_STREAMINFO_END = 42


def whole_container(data: bytes, encoding: str) -> bytes:
    """``data``, ready to decode: a streamed WAV and an uncounted MP3 get the length that their headers lack.

    Raises:
        ValueError: the container says that something of it is missing, damaged, or more than one recording.
    """
    if data.startswith((b"RIFF", b"RIFX")):
        return _whole_wav(data)
    if data.startswith(b"OggS"):
        _check_ogg(data)
    if data.startswith(b"fLaC") and len(data) >= FLAC_STREAMINFO_END:
        num_samples = int.from_bytes(data[21:26], "big") & ((1 << 36) - 1)
        if num_samples == 0:
            raise ValueError("flac without its number of samples (written to a pipe?): encode it to a file")
    return with_frame_count(data) if encoding == "mp3" else data


def _whole_wav(data: bytes) -> bytes:
    order = "<" if data.startswith(b"RIFF") else ">"
    start = 12
    while start + 8 <= len(data):
        name, num_bytes = data[start : start + 4], struct.unpack_from(f"{order}I", data, start + 4)[0]
        start += 8
        if name == b"data":
            return _with_data_size(data, start, num_bytes, order)
        start += num_bytes + num_bytes % 2
    raise ValueError("wav without a data chunk: it was cut off")


def _with_data_size(data: bytes, start: int, num_bytes: int, order: str) -> bytes:
    there = len(data) - start
    riff_bytes = struct.unpack_from(f"{order}I", data, 4)[0]
    is_closed = start - 8 <= riff_bytes < STREAMED_BYTES
    is_streamed = num_bytes >= STREAMED_BYTES or (num_bytes == 0 and there > 0 and not is_closed)
    if is_streamed:
        return data[: start - 4] + struct.pack(f"{order}I", there) + data[start:]
    if num_bytes > there:
        raise ValueError(f"cut short: {there} of {num_bytes} bytes of wav data")
    return data


def _check_ogg(data: bytes) -> None:
    start = number = 0
    serial, flags = b"", 0
    while start < len(data):
        page = _ogg_page(data, start)
        flags, page_number = page[5], int.from_bytes(page[18:22], "little")
        if start == 0:
            serial, number = page[14:18], page_number
        elif flags & OGG_FIRST or page[14:18] != serial:
            raise ValueError("ogg with more than one stream; store each recording as a clip of its own")
        if page_number != number:
            raise ValueError(f"cut: ogg page {number} is missing before page {page_number}")
        number += 1
        start += len(page)
    if not flags & OGG_LAST:
        raise ValueError("cut short: the last ogg page is not marked as the end")


def _ogg_page(data: bytes, start: int) -> bytes:
    head = data[start : start + OGG_HEADER_BYTES]
    if len(head) < OGG_HEADER_BYTES or not head.startswith(b"OggS"):
        raise ValueError(f"no ogg page at byte {start}: cut or damaged")
    table = data[start + OGG_HEADER_BYTES : start + OGG_HEADER_BYTES + head[26]]
    page = data[start : start + OGG_HEADER_BYTES + head[26] + sum(table)]
    if len(table) < head[26] or len(page) < OGG_HEADER_BYTES + head[26] + sum(table):
        raise ValueError(f"cut short: inside the ogg page at byte {start}")
    if _ogg_crc32(page[:22] + b"\0\0\0\0" + page[26:]) != int.from_bytes(page[22:26], "little"):
        raise ValueError(f"damaged ogg page at byte {start}: its checksum differs")
    return page


def _ogg_crc32(page: bytes) -> int:
    """Ogg's CRC is zlib's polynomial on bits in the other order, without zlib's inversions (RFC 3533, section 6)."""
    reflected = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
