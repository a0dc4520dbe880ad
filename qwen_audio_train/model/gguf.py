"""Reading a GGUF file: its metadata and its tensors in fp32.

Only the plain formats are read (F32, F16, Q8_0, Q4_0, Q4_1): enough for the small language models that ship inside
packages, and simple enough to be checked byte by byte. What the numbers mean for a Llama model is in gguf_llama.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.byte_cursor import ByteCursor

MAX_FILE_BYTES = 16 << 30
MAX_RANK = 4
MAX_ARRAY_DEPTH = 2
MAX_ALIGNMENT_BYTES = 4096
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALAR_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BLOCK = 32
_LEAST_ENTRY_BYTES = 13
"""A metadata entry: empty key (8), type (4), one byte of value."""

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
_TensorHeader = tuple[str, list[int], int, int]
"""Name, shape, format id, offset in bytes from the start of the tensors."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    metadata: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """fp32, in row-major (PyTorch) order of dimensions."""


@dataclass(frozen=True, slots=True)
class _Format:
    values_per_block: int
    bytes_per_block: int
    decode: Callable[[ByteArray], FloatArray]
    """Blocks (num_blocks, bytes_per_block) to values (num_blocks, values_per_block)."""


def read_gguf(path: Path) -> GgufFile:
    """Raises CheckpointError when the file is missing, damaged, or uses a format that is not read here."""
    if not path.is_file():
        raise CheckpointError(f"There is no weight file '{path}'.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"'{path}' has {path.stat().st_size} bytes; more than {MAX_FILE_BYTES} are not accepted.")
    if not path.stat().st_size:
        raise CheckpointError(f"'{path}' is empty.")
    content = np.memmap(path, dtype=np.uint8, mode="r")
    cursor = ByteCursor(content.data, path)
    if bytes(cursor.take(4, "magic")) != b"GGUF":
        raise cursor.error("it does not start with 'GGUF'")
    version = cursor.unsigned(4, "version")
    if version not in _VERSIONS:
        raise cursor.error(f"GGUF version {version}; known are {_VERSIONS}")
    num_tensors = cursor.count(8, 24, "number of tensors")
    num_entries = cursor.count(8, _LEAST_ENTRY_BYTES, "number of metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.text(8, "metadata key")
        metadata[key] = _value(cursor, cursor.unsigned(4, f"type of '{key}'"), key, depth=0)
    headers = [_tensor_header(cursor) for _ in range(num_tensors)]
    alignment_bytes = metadata.get("general.alignment", 32)
    if not isinstance(alignment_bytes, int) or not 1 <= alignment_bytes <= MAX_ALIGNMENT_BYTES:
        raise cursor.error(f"general.alignment is {alignment_bytes!r}")
    start_bytes = -(-cursor.position_bytes // alignment_bytes) * alignment_bytes
    tensors = {header[0]: _tensor(cursor, header, start_bytes) for header in headers}
    if len(tensors) != num_tensors:
        raise cursor.error("a tensor name comes twice")
    return GgufFile(metadata, tensors)


def _value(cursor: ByteCursor, type_id: int, key: str, depth: int) -> Any:
    if type_id == _STRING:
        return cursor.text(8, f"value of '{key}'")
    if type_id == _ARRAY:
        if depth >= MAX_ARRAY_DEPTH:
            raise cursor.error(f"'{key}' nests arrays deeper than {MAX_ARRAY_DEPTH}")
        element_type = cursor.unsigned(4, f"element type of '{key}'")
        num_elements = cursor.count(8, 1, f"length of '{key}'")
        return [_value(cursor, element_type, key, depth + 1) for _ in range(num_elements)]
    if type_id not in _SCALAR_CODES:
        raise cursor.error(f"'{key}' has the unknown type {type_id}")
    return cursor.scalar(_SCALAR_CODES[type_id], f"value of '{key}'")


def _tensor_header(cursor: ByteCursor) -> _TensorHeader:
    name = cursor.text(8, "tensor name")
    rank = cursor.unsigned(4, f"rank of '{name}'")
    if rank > MAX_RANK:
        raise cursor.error(f"'{name}' claims {rank} dimensions")
    # GGUF lists the fastest dimension first.
    shape = [cursor.unsigned(8, f"shape of '{name}'") for _ in range(rank)][::-1]
    return name, shape, cursor.unsigned(4, f"format of '{name}'"), cursor.unsigned(8, f"offset of '{name}'")


def _tensor(cursor: ByteCursor, header: _TensorHeader, start_bytes: int) -> torch.Tensor:
    name, shape, format_id, offset_bytes = header
    if format_id not in _FORMATS:
        raise cursor.error(f"'{name}' uses tensor format {format_id}; read are F32, F16, Q4_0, Q4_1, Q8_0")
    layout = _FORMATS[format_id]
    num_values = math.prod(shape)
    if num_values == 0 or shape[-1] % layout.values_per_block:
        raise cursor.error(f"'{name}' of shape {shape} does not fill whole blocks of {layout.values_per_block}")
    num_blocks = num_values // layout.values_per_block
    # take() checks against what is left after the position, which a huge offset must not push outside.
    cursor.position_bytes = 0
    cursor.take(start_bytes + offset_bytes, f"offset of '{name}'")
    content = np.frombuffer(cursor.take(num_blocks * layout.bytes_per_block, f"tensor '{name}'"), dtype=np.uint8)
    values = layout.decode(content.reshape(num_blocks, layout.bytes_per_block))
    return torch.from_numpy(np.ascontiguousarray(values.reshape(shape)))


def _decode_f32(blocks: ByteArray) -> FloatArray:
    return blocks.copy().view(np.float32)


def _half(field: ByteArray) -> FloatArray:
    return np.ascontiguousarray(field).view(np.float16).astype(np.float32)


def _nibbles(packed: ByteArray) -> FloatArray:
    """16 bytes to 32 values: first all low halves, then all high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _decode_q4_0(blocks: ByteArray) -> FloatArray:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]) - 8)


def _decode_q4_1(blocks: ByteArray) -> FloatArray:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]) + _half(blocks[:, 2:4])


def _decode_q8_0(blocks: ByteArray) -> FloatArray:
    return _half(blocks[:, :2]) * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


_FORMATS = {
    0: _Format(1, 4, _decode_f32),
    1: _Format(1, 2, _half),
    2: _Format(_BLOCK, 18, _decode_q4_0),
    3: _Format(_BLOCK, 20, _decode_q4_1),
    8: _Format(_BLOCK, 34, _decode_q8_0),
}
