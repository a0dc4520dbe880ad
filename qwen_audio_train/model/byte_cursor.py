"""Reading a binary weight file field by field without ever looking past its end.

Weight files come from the internet: every length in them is a claim. Each read is checked against the bytes that are
really there before anything is allocated.
"""

from __future__ import annotations

import struct
from pathlib import Path

from qwen_audio_train.errors import CheckpointError

MAX_STRING_BYTES = 1 << 20
"""Longest text field accepted; chat templates are the longest seen (some kB)."""


class ByteCursor:
    """A position in a block of bytes. Every method raises CheckpointError instead of reading past the end."""

    def __init__(self, content: bytes | memoryview, path: Path) -> None:
        self._content = memoryview(content).cast("B")
        self._path = path
        self.position_bytes = 0

    @property
    def left_bytes(self) -> int:
        return len(self._content) - self.position_bytes

    def error(self, what: str) -> CheckpointError:
        """An error that names file and position, to be raised by the caller."""
        return CheckpointError(
            f"Weight file '{self._path}' is damaged or of another kind: {what} (at byte {self.position_bytes}). "
            "Delete it and fetch it again."
        )

    def take(self, num_bytes: int, what: str) -> memoryview:
        """The next ``num_bytes`` as a view, without a copy."""
        if not 0 <= num_bytes <= self.left_bytes:
            raise self.error(f"{what} needs {num_bytes} bytes, {self.left_bytes} are left")
        view = self._content[self.position_bytes : self.position_bytes + num_bytes]
        self.position_bytes += num_bytes
        return view

    def unsigned(self, num_bytes: int, what: str) -> int:
        """The next little-endian unsigned integer."""
        return int.from_bytes(self.take(num_bytes, what), "little")

    def scalar(self, code: str, what: str) -> int | float | bool:
        """The next little-endian value of one ``struct`` format code."""
        value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
        return value

    def text(self, length_bytes: int, what: str) -> str:
        """A UTF-8 string behind its own length, which is an unsigned integer of ``length_bytes`` bytes."""
        num_bytes = self.unsigned(length_bytes, f"length of {what}")
        if num_bytes > MAX_STRING_BYTES:
            raise self.error(f"{what} claims {num_bytes} bytes; more than {MAX_STRING_BYTES} are not accepted")
        try:
            return bytes(self.take(num_bytes, what)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8") from error

    def count(self, num_bytes: int, least_bytes_each: int, what: str) -> int:
        """A number of things to come, each of which takes at least ``least_bytes_each`` bytes of the file."""
        count = self.unsigned(num_bytes, what)
        if count * least_bytes_each > self.left_bytes:
            raise self.error(f"{what} is {count}, for which the {self.left_bytes} bytes left are too few")
        return count
