"""Random access to a set: any record and any clip by number, each one ``pread``, verified, or an error that names it.

Nothing is decoded before it is asked for, and nothing per sample lives in Python: a set of any size costs each worker
a few file descriptors and mapped pages. Safe under fork (reads carry their own position) and spawn (pickles to paths).
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_audio_train.audio.decode import Samples, decode_audio
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import Clip, Origin
from qwen_audio_train.shards.contract import DATASET_FILE, key_hash
from qwen_audio_train.shards.dataset import read_description
from qwen_audio_train.shards.files import json_bytes
from qwen_audio_train.shards.index import ShardIndex, open_index
from qwen_audio_train.shards.metadata import AnyRecord, build_record, metadata_problems, parse_metadata
from qwen_audio_train.shards.scan import BLOCK_BYTES
from qwen_audio_train.shards.writer import clip_length_problem

MAX_OPEN_SHARDS = 128


class _OpenShard:
    """A tar's descriptor and its index. Closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.index: ShardIndex = open_index(path)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """A prepared set. Samples are numbered 0 .. len - 1 in the order of the shards."""

    def __init__(self, directory: Path, description: dict[str, Any], headers: list[bytes]) -> None:
        self.directory = directory
        self.description = description
        """Content of ``dataset.json``."""
        self._headers = headers
        self._starts = np.cumsum([0] + [shard["num_samples"] for shard in description["shards"]])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> ShardSet:
        """Open a set by its folder or its ``dataset.json``.

        Raises:
            ShardError: description, index or tar is missing, damaged, or they do not belong together.
        """
        path = Path(path)
        directory = path.parent if path.name == DATASET_FILE else path
        description = read_description(directory / DATASET_FILE)
        headers = []
        for shard in description["shards"]:
            index = open_index(directory / shard["file"])
            found = (len(index.samples), len(index.clips), (directory / shard["file"]).stat().st_size)
            if found != (shard["num_samples"], shard["num_clips"], shard["bytes"]):
                raise ShardError(
                    f"'{directory / shard['file']}' has (samples, clips, bytes) {found}, not as described; "
                    "restore the shard, or rebuild with scripts/check_shards.py --reindex"
                )
            headers.append(index.header)
        return cls(directory.absolute(), description, headers)

    @property
    def name(self) -> str:
        """Name of the set, as errors print it."""
        return str(self.description["name"])

    @property
    def split(self) -> str:
        """The one split that all samples are of."""
        return str(self.description["split"])

    @property
    def fingerprint(self) -> str:
        """Identity of the content (hex): of every index and of ``dataset.json`` with the sha256 of every shard."""
        digest = hashlib.blake2b(json_bytes(self.description), digest_size=16)
        for header in self._headers:
            digest.update(header)
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def origin(self, i: int) -> Origin:
        """Where sample ``i`` comes from."""
        return self._read_metadata(i)[0]

    def record(self, i: int) -> AnyRecord:
        """Read and check the metadata of sample ``i``.

        Raises:
            SampleError: the metadata cannot be trusted.
            ShardError: the shard was exchanged or damaged since the set was opened.
        """
        origin, raw = self._read_metadata(i)
        try:
            metadata = parse_metadata(raw)
        except ValueError as error:
            raise SampleError(origin, str(error)) from error
        rows = self._clip_rows(i)
        problems = metadata_problems(metadata)
        if not problems and [clip["num_samples"] for clip in metadata["clips"]] != rows["num_samples"].tolist():
            problems = ["metadata and index disagree about the clips"]
        if problems:
            raise SampleError(origin, "; ".join(problems))
        shard_path = self.directory / origin.shard
        clips = tuple(
            Clip(
                shard_path,
                int(row["offset"]),
                int(row["num_bytes"]),
                int(row["num_samples"]),
                clip["sha256"],
                clip["encoding"],
            )
            for row, clip in zip(rows, metadata["clips"], strict=True)
        )
        return build_record(metadata, origin, clips)

    def clips(self, i: int) -> tuple[Clip, ...]:
        """The clips of sample ``i``."""
        return self.record(i).clips

    def clip_crc32(self, i: int) -> list[int]:
        """crc32 of the encoded bytes of sample ``i``'s clips, as indexed."""
        return [int(value) for value in self._clip_rows(i)["crc32"]]

    def clip_lengths(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lengths of all clips without reading a tar.

        Returns:
            ``first`` of shape (len + 1,) and ``num_samples`` of shape (num_clips,): the clips of sample i are
            ``num_samples[first[i]:first[i + 1]]``, in 16 kHz samples.
        """
        indexes = [self._shard(number).index for number in range(len(self._headers))]
        counts = np.concatenate([index.samples["num_clips"] for index in indexes]).astype(np.int64)
        lengths = np.concatenate([index.clips["num_samples"] for index in indexes]).astype(np.int64)
        return np.concatenate([[0], np.cumsum(counts)]), lengths

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

    def read_clip_bytes(self, clip: Clip, origin: Origin) -> bytes:
        """Read and verify the encoded bytes of a clip.

        Raises:
            SampleError: short read, or the checksum differs.
        """
        shard = self._shard(self._number_of(origin.shard))
        data = os.pread(shard.descriptor, clip.num_bytes, clip.offset_bytes)
        if len(data) != clip.num_bytes:
            raise SampleError(origin, f"clip cut short: {len(data)} of {clip.num_bytes} bytes; restore the shard")
        if hashlib.sha256(data).hexdigest() != clip.sha256:
            raise SampleError(origin, f"checksum of the clip at byte {clip.offset_bytes} differs; restore the shard")
        return data

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of set '{self.name}' with {len(self)} samples")
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])

    def _number_of(self, shard_name: str) -> int:
        names = [shard["file"] for shard in self.description["shards"]]
        if shard_name not in names:
            raise ShardError(f"shard '{shard_name}' is not part of set '{self.name}'")
        return names.index(shard_name)

    def _shard(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            path = self.directory / self.description["shards"][number]["file"]
            shard = _OpenShard(path)
            if shard.index.header != self._headers[number]:
                raise ShardError(f"'{path}' was exchanged while the set was open; start again")
            self._open[number] = shard
            while len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _clip_rows(self, i: int) -> npt.NDArray[np.void]:
        number, row_number = self._locate(i)
        index = self._shard(number).index
        first, count = int(index.samples[row_number]["first_clip"]), int(index.samples[row_number]["num_clips"])
        return index.clips[first : first + count]

    def _read_metadata(self, i: int) -> tuple[Origin, bytes]:
        number, row_number = self._locate(i)
        shard, file_name = self._shard(number), self.description["shards"][number]["file"]
        row = shard.index.samples[row_number]
        num_bytes, offset = int(row["json_bytes"]), int(row["json_offset"])
        raw = os.pread(shard.descriptor, BLOCK_BYTES + num_bytes, offset - BLOCK_BYTES)
        try:
            # The tar's own header stands right before the data: it gives the key, and shows that this is the sample.
            key = tarfile.TarInfo.frombuf(raw[:BLOCK_BYTES], "utf-8", "strict").name.removesuffix(".json")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise ShardError(f"'{self.directory / file_name}' is damaged at byte {offset}: {error}") from error
        if key_hash(key) != int(row["key_hash"]) or len(raw) != BLOCK_BYTES + num_bytes:
            raise ShardError(
                f"'{self.directory / file_name}' does not hold at byte {offset} what was indexed; restore it"
            )
        return Origin(self.name, file_name, key), raw[BLOCK_BYTES:]
