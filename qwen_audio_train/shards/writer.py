"""Write shards: measure every clip, refuse what training would refuse, publish whole tars only.

Equal input gives byte-equal tars (no times, no users), so a set's sha256 says whether two preparations agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import webdataset

from qwen_audio_train.audio.decode import decode_audio
from qwen_audio_train.audio.lengths import MAX_CLIP_SAMPLES, MIN_CLIP_SAMPLES, SAMPLING_RATE_HZ
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import Origin
from qwen_audio_train.shards.contract import DATASET_FILE, MAX_MEMBER_BYTES, SKIPPED_FILE, clip_suffix, key_problem
from qwen_audio_train.shards.dataset import describe_set
from qwen_audio_train.shards.files import json_bytes, publish_file, temporary_path, write_file
from qwen_audio_train.shards.index import build_index
from qwen_audio_train.shards.left_out import left_out_line
from qwen_audio_train.shards.metadata import metadata_problems, parse_metadata

OnBad = Literal["raise", "skip"]
SKIPPED_PART_SUFFIX = ".skipped.jsonl"


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """Encoded bytes and what was measured of them."""

    data: bytes
    encoding: str
    num_samples: int
    sha256: str

    @classmethod
    def measure(cls, data: bytes, encoding: str) -> EncodedClip:
        """Decode once to learn the true length at 16 kHz.

        Raises:
            ValueError: the bytes do not decode (see ``audio.decode``) or are too many for a member.
        """
        if len(data) > MAX_MEMBER_BYTES:
            raise ValueError(f"clip of {len(data)} bytes; at most {MAX_MEMBER_BYTES}")
        num_samples = len(decode_audio(data, encoding))
        return cls(data, encoding, num_samples, hashlib.sha256(data).hexdigest())


ClipInput = EncodedClip | tuple[bytes, str]


def clip_length_problem(num_samples: int) -> str | None:
    """Why a clip of this length cannot be trained on, or None."""
    if MIN_CLIP_SAMPLES <= num_samples <= MAX_CLIP_SAMPLES:
        return None
    seconds = num_samples / SAMPLING_RATE_HZ
    return (
        f"clip of {num_samples} samples ({seconds:.3f} s); the model takes {MIN_CLIP_SAMPLES} to {MAX_CLIP_SAMPLES} "
        "(0.02 to 30 s): cut or drop it"
    )


class ShardFile:
    """One tar being written under a temporary name, until ``publish`` gives it its name and its index."""

    def __init__(self, path: Path, dataset_name: str, *, split: str, license: str, on_bad: OnBad = "raise") -> None:
        self.path = path
        self.num_samples = 0
        self.num_bytes = 0
        self.skipped: list[bytes] = []
        """Lines for ``skipped.jsonl``."""
        self._dataset_name = dataset_name
        self._defaults = {"split": split, "license": license}
        self._on_bad = on_bad
        self._keys: set[str] = set()
        self._stream = temporary_path(path).open("wb")
        self._tar = webdataset.TarWriter(self._stream, encoder=False, mtime=0, user="", group="", compress=False)

    def write(self, key: str, clips: Sequence[ClipInput], metadata: Mapping[str, Any]) -> bool:
        """Add a sample; False when it was skipped.

        Raises:
            SampleError: the sample breaks the contract and bad ones are not to be skipped.
        """
        try:
            members = self._members_of(key, clips, metadata)
        except ValueError as error:
            self.skip(key, str(error))
            return False
        self._tar.write({"__key__": key, **members})
        self._keys.add(key)
        self.num_samples += 1
        self.num_bytes += sum(map(len, members.values()))
        return True

    def skip(self, key: str, reason: str) -> None:
        """Record a sample as unusable, or raise, as the writer was told."""
        if self._on_bad == "raise":
            raise SampleError(self._origin(key), reason)
        self.leave_out(key, reason)

    def leave_out(self, key: str, reason: str) -> None:
        """Record a sample that is left out on purpose."""
        self.skipped.append(left_out_line(self._origin(key), reason))

    def publish(self) -> None:
        """Finish the tar, give it its name, index it, and record beside it what was skipped."""
        self._tar.close()
        self._stream.close()
        if self.skipped:
            write_file(self.path.with_suffix(SKIPPED_PART_SUFFIX), b"".join(self.skipped))
        if self.num_samples:
            publish_file(self.path)
            build_index(self.path)
        else:
            temporary_path(self.path).unlink()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._stream.close()
        temporary_path(self.path).unlink(missing_ok=True)

    def _origin(self, key: str) -> Origin:
        return Origin(self._dataset_name, self.path.name, key)

    def _members_of(self, key: str, clips: Sequence[ClipInput], metadata: Mapping[str, Any]) -> dict[str, bytes]:
        if problem := key_problem(key):
            raise ValueError(problem)
        if key in self._keys:
            raise ValueError("key was written before")
        encoded = [clip if isinstance(clip, EncodedClip) else EncodedClip.measure(*clip) for clip in clips]
        problems = [problem for clip in encoded if (problem := clip_length_problem(clip.num_samples))]
        stated = [{"num_samples": c.num_samples, "sha256": c.sha256, "encoding": c.encoding} for c in encoded]
        complete = {**self._defaults, **metadata, "clips": stated}
        problems += metadata_problems(complete)
        if complete["split"] != self._defaults["split"]:
            problems.append(f"split '{complete['split']}' in a set of split '{self._defaults['split']}'")
        if problems:
            raise ValueError("; ".join(problems))
        raw = json_bytes(complete)
        parse_metadata(raw)  # what the reader's caps would refuse is refused here
        members = {clip_suffix(k, len(encoded), clip.encoding): clip.data for k, clip in enumerate(encoded)}
        return {**members, "json": raw}


class ShardWriter:
    """Write a set shard by shard; the set exists once the ``with`` block ends without an error.

    Args:
        license: of samples whose metadata does not state its own.
        on_bad: ``raise`` a SampleError at the first unusable sample, or ``skip`` it, recorded in ``skipped.jsonl``.
    """

    def __init__(
        self,
        directory: Path,
        dataset_name: str,
        *,
        split: str,
        license: str,
        samples_per_shard: int = 1000,
        shard_bytes: int = 1 << 30,
        on_bad: OnBad = "raise",
    ) -> None:
        if any(directory.glob("*.tar")) or (directory / DATASET_FILE).exists():
            raise ShardError(f"'{directory}' already holds shards; remove them or write elsewhere")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.num_samples = 0
        self.num_skipped = 0
        self.description: dict[str, Any] | None = None
        """Content of ``dataset.json``, once closed."""
        self._dataset_name = dataset_name
        self._file_options: dict[str, Any] = {"split": split, "license": license, "on_bad": on_bad}
        self._samples_per_shard = samples_per_shard
        self._shard_bytes = shard_bytes
        self._num_shards = 0
        self._keys: set[str] = set()
        self._shard: ShardFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abort()

    def write(self, key: str, clips: Sequence[ClipInput], metadata: Mapping[str, Any]) -> bool:
        """Add a sample: its clips (measured, or as bytes and encoding) and its payload; False when it was skipped.

        Raises:
            SampleError: the sample breaks the contract and ``on_bad`` is ``raise``.
        """
        if self._shard is None:
            path = self.directory / shard_name(self._dataset_name, self._num_shards)
            self._shard = ShardFile(path, self._dataset_name, **self._file_options)
        if key in self._keys:
            self._shard.skip(key, "key was written before")
            return False
        if not self._shard.write(key, clips, metadata):
            return False
        self._keys.add(key)
        if self._shard.num_samples >= self._samples_per_shard or self._shard.num_bytes >= self._shard_bytes:
            self._publish_shard()
        return True

    def close(self) -> None:
        """Publish what is open and describe the set."""
        self._publish_shard()
        gather_skipped(self.directory)
        self.description = describe_set(self.directory, self._dataset_name)

    def _publish_shard(self) -> None:
        if self._shard is not None:
            self._shard.publish()
            self.num_samples += self._shard.num_samples
            self.num_skipped += len(self._shard.skipped)
            self._num_shards += 1
            self._shard = None


def shard_name(dataset_name: str, number: int) -> str:
    """File name of a shard."""
    return f"{dataset_name}-{number:06d}.tar"


def gather_skipped(directory: Path) -> None:
    """Join what each shard skipped into one file beside the set."""
    parts = sorted(directory.glob(f"*{SKIPPED_PART_SUFFIX}"))
    if parts:
        write_file(directory / SKIPPED_FILE, b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
