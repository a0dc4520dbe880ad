"""Random access to a set: any record and any clip by number, each one ranged read, verified, or an error that names it.

Nothing is decoded before it is asked for, and nothing per sample lives in Python: a set of any size costs each worker
a few file descriptors and mapped pages. Safe under fork (reads carry their own position) and spawn (pickles to places).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from qwen_audio_train.audio.decode import Samples, decode_audio
from qwen_audio_train.config.remote import RemoteConfig, is_url
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import Clip, Origin
from qwen_audio_train.shards.contract import DATASET_FILE, key_hash
from qwen_audio_train.shards.dataset import parse_description, read_raw_description
from qwen_audio_train.shards.metadata import AnyRecord, build_record, metadata_problems, parse_metadata
from qwen_audio_train.shards.remote import RemoteFolder
from qwen_audio_train.shards.scan import BLOCK_BYTES, key_of_header
from qwen_audio_train.shards.set_index import REMEDY, SET_INDEX_FILE, open_set_index
from qwen_audio_train.shards.sources import (
    ByteRange,
    ByteSource,
    LocalFolder,
    ReadFailedError,
    ShardBytes,
    edges_digest,
)
from qwen_audio_train.shards.writer import clip_length_problem

MAX_OPEN_SHARDS = 512


class ShardSet:
    """A prepared set. Samples are numbered 0 .. len - 1 in the order of the shards."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        description_path = source.metadata_path(DATASET_FILE)
        where = source.where(DATASET_FILE)
        raw = read_raw_description(description_path, where)
        self.description: dict[str, Any] = parse_description(raw, where)
        """Content of ``dataset.json``."""
        self._index = open_set_index(source.metadata_path(SET_INDEX_FILE), raw, source.where(SET_INDEX_FILE))
        self._tables = self._index.tables
        if len(self._tables.shards) != len(self.description["shards"]):
            raise ShardError(f"'{where}' does not name the shards of its dataset.idx; {REMEDY}")
        self._starts = self._tables.shards["first_sample"].astype(np.int64)
        self._open: OrderedDict[int, ShardBytes] = OrderedDict()
        self._numbers: dict[str, int] | None = None
        self._last_name, self._last_path = "", Path()

    @classmethod
    def open(cls, path: str | Path, *, remote: RemoteConfig | None = None) -> ShardSet:
        """Open a set by its folder or its ``dataset.json``, here or at a URL (http, https, s3, gs, az, abfs).

        Costs the same for any number of samples: each shard is verified when it is first read.

        Args:
            remote: cache, patience and read-ahead of a set at a URL.

        Raises:
            ShardError: description or index is missing, damaged, or they do not belong together; or the URL is of a
                kind that is not allowed, or its server gives no ranges.
        """
        text = str(path)
        if is_url(text):
            return cls(RemoteFolder(text, remote or RemoteConfig()))
        path = Path(path)
        return cls(LocalFolder(path.parent if path.name == DATASET_FILE else path))

    @property
    def directory(self) -> Path:
        """Its folder. Raises ShardError for a set at a URL, which has none."""
        if isinstance(self.source, LocalFolder):
            return self.source.directory
        raise ShardError(f"set '{self.source.location}' is not on this machine; copy it here for this")

    @property
    def name(self) -> str:
        """Name of the set, as errors print it."""
        return str(self.description["name"])

    @property
    def is_remote(self) -> bool:
        """Whether ``prefetch`` is of use."""
        return not isinstance(self.source, LocalFolder)

    @property
    def split(self) -> str:
        """The one split that all samples are of."""
        return str(self.description["split"])

    @property
    def fingerprint(self) -> str:
        """Identity of the content (hex): of every index row and of ``dataset.json`` with the sha256 of every shard."""
        return hashlib.blake2b(self._index.header, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._tables.samples)

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the files itself: what travels is where they are, not what they hold.
        return {"source": self.source, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])  # type: ignore[misc]
        if self.fingerprint != state["fingerprint"]:
            raise ShardError(f"set '{self.source.location}' was exchanged while it was open; start again")

    def origin(self, i: int) -> Origin:
        """Where sample ``i`` comes from."""
        return self._read_metadata(i)[0]

    def record(self, i: int) -> AnyRecord:
        """Read and check the metadata of sample ``i``.

        Raises:
            SampleError: the metadata cannot be trusted.
            ShardError: the shard is missing, or is not the one that was indexed.
        """
        origin, raw = self._read_metadata(i)
        try:
            metadata = parse_metadata(raw)
        except ValueError as error:
            raise SampleError(origin, str(error)) from error
        span = self._clip_span(i)
        rows, lengths = self._tables.clips[span].tolist(), self._tables.clip_samples[span].tolist()
        problems = metadata_problems(metadata)
        if not problems and [clip["num_samples"] for clip in metadata["clips"]] != lengths:
            problems = ["metadata and index disagree about the clips"]
        if problems:
            raise SampleError(origin, "; ".join(problems))
        shard_path = self._path_of(origin.shard)
        clips = tuple(
            Clip(
                shard_path,
                offset,
                num_bytes,
                clip["num_samples"],
                clip["sha256"],
                clip["encoding"],
                xxh3,
            )
            for (offset, xxh3, num_bytes, _), clip in zip(rows, metadata["clips"], strict=True)
        )
        return build_record(metadata, origin, clips)

    def clips(self, i: int) -> tuple[Clip, ...]:
        """The clips of sample ``i``."""
        return self.record(i).clips

    def clip_lengths(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Lengths of all clips without reading a tar: views of the mapped index, nothing is copied.

        Returns:
            ``first`` of shape (len + 1,) and ``num_samples`` of shape (num_clips,): the clips of sample i are
            ``num_samples[first[i]:first[i + 1]]``, in 16 kHz samples. Both read-only.
        """
        return self._tables.first_clip, self._tables.clip_samples

    def prefetch(self, sample_numbers: Iterable[int], *, with_clips: bool = True) -> None:
        """Hint that these samples will be read soon; returns at once and raises nothing.

        A set at a URL fetches their bytes into its cache in the background, neighbours in one request. Call it with
        the next bins of the plan, in their order, in the process that will read them. Does nothing for local sets.
        ``with_clips``: whether the clips will be read too, or the metadata alone.
        """
        if not self.is_remote:
            return
        ranges: dict[str, list[ByteRange]] = {}
        for i in sample_numbers:
            number = self._locate(i)
            row, span = self._tables.samples[i], self._clip_span(i) if with_clips else slice(0)
            wanted = ranges.setdefault(self.description["shards"][number]["file"], [])
            json_offset = int(row["json_offset"])
            wanted.append((json_offset - BLOCK_BYTES, json_offset + int(row["json_bytes"])))
            wanted.extend((int(c["offset"]), int(c["offset"]) + int(c["num_bytes"])) for c in self._tables.clips[span])
        self.source.prefetch(ranges)

    def read_clip(self, clip: Clip, origin: Origin) -> Samples:
        """Read, verify and decode a clip to float32 at 16 kHz, shape (clip.num_samples,).

        Raises:
            SampleError: short read, checksum or length differs from what is stated, does not decode, too short or long.
        """
        if problem := clip_length_problem(clip.num_samples):
            raise SampleError(origin, problem)
        data = self.read_clip_bytes(clip, origin)
        try:
            samples = decode_audio(data, clip.encoding)
        except ValueError as error:
            raise SampleError(origin, f"clip does not decode: {error}") from error
        if len(samples) != clip.num_samples:
            raise SampleError(
                origin, f"clip has {len(samples)} samples at 16 kHz, its metadata says {clip.num_samples}"
            )
        return samples

    def read_clip_bytes(self, clip: Clip, origin: Origin, *, thorough: bool = False) -> bytes:
        """Read and verify the encoded bytes of a clip.

        Args:
            thorough: also compare the sha256 of the metadata, as checking a set does. Reading for training compares
                the 64-bit xxh3 of the index, which finds damage as surely and costs a tenth.

        Raises:
            SampleError: not readable, short read, or a checksum differs.
        """
        shard = self._shard(self._number_of(origin.shard))
        try:
            data = shard.read(clip.offset_bytes, clip.num_bytes)
        except ReadFailedError as error:
            raise SampleError(origin, str(error)) from None
        if len(data) != clip.num_bytes:
            raise SampleError(origin, f"clip cut short: {len(data)} of {clip.num_bytes} bytes; restore the shard")
        is_same = clip.xxh3 is None or xxhash.xxh3_64_intdigest(data) == clip.xxh3
        if is_same and (thorough or clip.xxh3 is None):
            is_same = hashlib.sha256(data).hexdigest() == clip.sha256
        if not is_same:
            raise SampleError(origin, f"checksum of the clip at byte {clip.offset_bytes} differs; restore the shard")
        return data

    def _path_of(self, shard_name: str) -> Path:
        if self._last_name != shard_name:
            folder = self.source.directory if isinstance(self.source, LocalFolder) else Path()
            self._last_name, self._last_path = shard_name, folder / shard_name
        return self._last_path

    def _locate(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of set '{self.name}' with {len(self)} samples")
        return int(self._starts.searchsorted(i, side="right")) - 1

    def _number_of(self, shard_name: str) -> int:
        if self._numbers is None:
            self._numbers = {shard["file"]: number for number, shard in enumerate(self.description["shards"])}
        if shard_name not in self._numbers:
            raise ShardError(f"shard '{shard_name}' is not part of set '{self.name}'")
        return self._numbers[shard_name]

    def _shard(self, number: int) -> ShardBytes:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._open_shard(number)
            while len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _open_shard(self, number: int) -> ShardBytes:
        name, row = self.description["shards"][number]["file"], self._tables.shards[number]
        where, indexed_bytes = self.source.where(name), int(row["tar_bytes"])
        self._index.require_sound_rows(number, self.source.where(SET_INDEX_FILE))
        shard = self.source.open_shard(name)
        try:
            is_same = shard.size_bytes == indexed_bytes and edges_digest(shard) == row["edges"].tobytes()
        except ReadFailedError as error:
            raise ShardError(f"shard '{where}' cannot be opened: {error}") from None
        if not is_same:
            raise ShardError(
                f"'{where}' ({shard.size_bytes} bytes) is not the tar indexed ({indexed_bytes} bytes); "
                f"restore it, or if it is as it should be, {REMEDY}"
            )
        return shard

    def _clip_span(self, i: int) -> slice:
        first = self._tables.first_clip
        return slice(first.item(i), first.item(i + 1))

    def _read_metadata(self, i: int) -> tuple[Origin, bytes]:
        number = self._locate(i)
        shard, file_name = self._shard(number), self.description["shards"][number]["file"]
        indexed_hash, offset, indexed_xxh3, num_bytes, _ = self._tables.samples[i].item()
        try:
            raw = shard.read(offset - BLOCK_BYTES, BLOCK_BYTES + num_bytes)
        except ReadFailedError as error:
            # Its key would have been in these bytes.
            raise SampleError(Origin(self.name, file_name, f"number {i}"), str(error)) from None
        # The tar's own header stands right before the data: it gives the key, and shows that this is the sample.
        key = key_of_header(raw[:BLOCK_BYTES])
        if key_hash(key) != indexed_hash or len(raw) != BLOCK_BYTES + num_bytes:
            raise ShardError(
                f"'{self.source.where(file_name)}' does not hold at byte {offset} what was indexed; restore it"
            )
        origin, raw = Origin(self.name, file_name, key), raw[BLOCK_BYTES:]
        if xxhash.xxh3_64_intdigest(raw) != indexed_xxh3:
            raise SampleError(origin, f"checksum of the metadata at byte {offset} differs; restore the shard")
        return origin, raw
