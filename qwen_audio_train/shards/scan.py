"""Read a tar front to back and yield its samples, refusing everything that the contract does not allow.

The headers are read here rather than by ``tarfile``'s iterator, because that one stops quietly at a damaged header and
follows extensions (links, long names, sparse files) that a shard has no use for.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import (
    ENCODINGS,
    MAX_MEMBER_BYTES,
    MAX_METADATA_BYTES,
    clip_suffix,
    key_hash,
    key_problem,
)
from qwen_audio_train.shards.metadata import metadata_problems, parse_metadata

BLOCK_BYTES = 512
END_BLOCKS = 2
MAX_PAX_BYTES = 64 << 10
MAX_PADDING_BYTES = 1 << 20
"""Zeros after the end-of-archive mark. Tools fill up their last record (10 kB as a rule); a copy into a file of full
size that stopped on the way leaves far more, and would pass for a shorter tar."""
HARMLESS_PAX = re.compile(rb"\d+ (mtime|atime|ctime|uid|gid|uname|gname)=[^\n]*\n")
"""Python's tarfile writes such a block for a fractional mtime; path or size overrides are not let in."""
MAGIC_OF_COMPRESSION = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a tar."""

    key: str
    suffix: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ScannedClip:
    """A row of the index's clip table."""

    offset: int
    num_bytes: int
    num_samples: int
    crc32: int
    encoding: int


@dataclass(frozen=True, slots=True)
class ScannedSample:
    """A row of the index's sample table and its clips."""

    key: str
    key_hash: int
    json_offset: int
    json_bytes: int
    json_xxh3: int
    clips: tuple[ScannedClip, ...]


@dataclass(frozen=True, slots=True)
class WholeSample:
    """A sample with all its bytes, for checks that read everything once."""

    row: ScannedSample
    metadata: dict[str, Any]
    clips: tuple[bytes, ...]


OnBadSample = Callable[[str, str], None]
"""Takes the key and what is wrong with its metadata or its group of members."""


def scan_tar(tar_path: Path) -> Iterator[ScannedSample]:
    """Yield the samples of a tar in order.

    Raises:
        ShardError: cut or compressed tar, missing end-of-archive, anything but regular files, illegal names, unknown
            suffixes, oversize members, interleaved, duplicate or incomplete groups, metadata that breaks the contract.
    """
    for sample in scan_whole_samples(tar_path):
        yield sample.row


def scan_whole_samples(tar_path: Path, on_bad: OnBadSample | None = None) -> Iterator[WholeSample]:
    """Yield the samples of a tar with their bytes.

    Args:
        on_bad: told of samples that are bad by themselves, instead of raising at the first; what puts the tar in
            doubt raises all the same.

    Raises:
        ShardError: as ``scan_tar``.
    """
    num_groups = 0
    for group in _groups(tar_path):
        num_groups += 1
        try:
            yield _sample_of(group)
        except ValueError as error:
            if on_bad is None:
                raise ShardError(f"'{tar_path}': sample '{group[0].key}' {error}") from error
            on_bad(group[0].key, str(error))
    if not num_groups:
        raise ShardError(f"'{tar_path}' holds no sample")


def _groups(tar_path: Path) -> Iterator[list[Member]]:
    seen: set[int] = set()
    group: list[Member] = []
    with tar_path.open("rb") as file:
        for member in _members(file, tar_path):
            if group and member.key != group[0].key:
                yield group
                group = []
            if not group:
                if key_hash(member.key) in seen:
                    raise ShardError(f"'{tar_path}': key '{member.key}' twice, or its members are not adjacent")
                seen.add(key_hash(member.key))
            group.append(member)
    if group:
        yield group


def _members(file: BinaryIO, tar_path: Path) -> Iterator[Member]:
    while True:
        block = file.read(BLOCK_BYTES)
        if file.tell() == len(block):
            _refuse_compression(block, tar_path)
        if len(block) < BLOCK_BYTES:
            raise ShardError(
                f"'{tar_path}' ends without an end-of-archive mark: it was cut off; copy or write it again"
            )
        if not block.strip(b"\0"):
            _check_end(file, tar_path)
            return
        header = _parse_header(block, tar_path, file.tell() - BLOCK_BYTES)
        if header.type == tarfile.XHDTYPE:
            _check_pax(_read_data(file, header, tar_path, MAX_PAX_BYTES), tar_path)
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ShardError(f"'{tar_path}': member {header.name!r} is no regular file (type {header.type!r})")
        key, suffix = _split_name(header.name, tar_path)
        offset = file.tell()
        cap = MAX_METADATA_BYTES if suffix == "json" else MAX_MEMBER_BYTES
        yield Member(key, suffix, offset, _read_data(file, header, tar_path, cap))


def _refuse_compression(block: bytes, tar_path: Path) -> None:
    for magic, name in MAGIC_OF_COMPRESSION.items():
        if block.startswith(magic):
            raise ShardError(f"'{tar_path}' is compressed ({name}); audio is compressed already: decompress the tar")


def _parse_header(block: bytes, tar_path: Path, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ShardError(f"'{tar_path}' has a damaged header at byte {offset}: {error}") from error


def _read_data(file: BinaryIO, header: tarfile.TarInfo, tar_path: Path, cap: int) -> bytes:
    if not 0 <= header.size <= cap:
        raise ShardError(f"'{tar_path}': member {header.name!r} of {header.size} bytes; at most {cap}")
    padded_bytes = -(-header.size // BLOCK_BYTES) * BLOCK_BYTES
    data = file.read(padded_bytes)
    if len(data) < padded_bytes:
        raise ShardError(f"'{tar_path}' ends inside member {header.name!r}: it was cut off; copy or write it again")
    return data[: header.size]


def _check_pax(data: bytes, tar_path: Path) -> None:
    if HARMLESS_PAX.sub(b"", data):
        raise ShardError(f"'{tar_path}' overrides names or sizes by pax headers; write it in the ustar format")


def _check_end(file: BinaryIO, tar_path: Path) -> None:
    zeros = BLOCK_BYTES
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ShardError(f"'{tar_path}' has data after its end-of-archive mark; tars must not be concatenated")
        zeros += len(chunk)
        if zeros > MAX_PADDING_BYTES:
            raise ShardError(f"'{tar_path}' goes on in zeros for over {MAX_PADDING_BYTES} bytes: an unfinished copy?")
    if zeros < END_BLOCKS * BLOCK_BYTES:
        raise ShardError(f"'{tar_path}' ends inside its end-of-archive mark: it was cut off; copy or write it again")


def _split_name(name: str, tar_path: Path) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    key = folder + slash + stem
    if problem := key_problem(key):
        raise ShardError(f"'{tar_path}': member {name!r} has {problem}")
    number, _, encoding = suffix.rpartition(".")
    known = suffix == "json" or (encoding in ENCODINGS and (number == "" or number.isdecimal()))
    if not known:
        raise ShardError(f"'{tar_path}': member {name!r} has unknown suffix {suffix!r}; json or {', '.join(ENCODINGS)}")
    return key, suffix


def _sample_of(group: list[Member]) -> WholeSample:
    """Raises ValueError for a group that is incomplete or whose metadata breaks the contract."""
    members = {member.suffix: member for member in group}
    if len(members) < len(group) or "json" not in members:
        found = ", ".join(member.suffix for member in group)
        raise ValueError(f"has members {found}; expected one json and each clip once")
    meta_member = members.pop("json")
    metadata = parse_metadata(meta_member.data)
    if problems := metadata_problems(metadata):
        raise ValueError("; ".join(problems))
    stated: list[dict[str, Any]] = metadata["clips"]
    expected = [clip_suffix(position, len(stated), clip["encoding"]) for position, clip in enumerate(stated)]
    if sorted(expected) != sorted(members):
        raise ValueError(f"has clip members {sorted(members)}, its metadata states {expected}: incomplete group")
    clips = tuple(_clip_of(members[suffix], clip) for suffix, clip in zip(expected, stated, strict=True))
    key, num_bytes = group[0].key, len(meta_member.data)
    checksum = xxhash.xxh3_64_intdigest(meta_member.data)
    row = ScannedSample(key, key_hash(key), meta_member.offset, num_bytes, checksum, clips)
    return WholeSample(row, metadata, tuple(members[suffix].data for suffix in expected))


def _clip_of(member: Member, stated: dict[str, Any]) -> ScannedClip:
    encoding = ENCODINGS.index(stated["encoding"])
    return ScannedClip(member.offset, len(member.data), stated["num_samples"], zlib.crc32(member.data), encoding)


def key_of_header(block: bytes) -> str:
    """Key in the header of a json member; whatever it is of a damaged one, its hash is not the indexed one."""
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    is_ustar = block[257:263] == b"ustar\0"
    return (prefix + b"/" + name if prefix and is_ustar else name).decode("utf-8", "replace").removesuffix(".json")
