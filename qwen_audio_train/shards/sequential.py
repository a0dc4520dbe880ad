"""Read tars front to back, from places that allow nothing else. The weaker mode: for conversion and export only.

There is no index, so no order but the tars' own, no exact resume, and no other number of ranks half way; training reads
an indexed set (``scripts/reshard.py`` makes one). What is not weaker is the checking: a tar is fetched whole and passes
the scan that indexing applies before its first sample is given, so none is half-read. webdataset then groups the
members, with its ``enforce_security`` on and none of its decoders.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import webdataset
import webdataset.tariterators

from qwen_audio_train.config.remote import RemoteConfig, is_url
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import Clip, Origin
from qwen_audio_train.shards.contract import SHARD_NAME_PATTERN, clip_suffix
from qwen_audio_train.shards.metadata import AnyRecord, build_record, parse_metadata
from qwen_audio_train.shards.ranged_get import safe_url
from qwen_audio_train.shards.remote import RemoteFolder
from qwen_audio_train.shards.scan import ScannedSample, scan_tar

MAX_TAR_BYTES = 64 << 30

webdataset.utils.enforce_security = True


@dataclass(frozen=True, slots=True)
class SequentialSample:
    """A sample and the encoded bytes of its clips, in their order."""

    record: AnyRecord
    clips: tuple[bytes, ...]


def read_sequentially(
    tars: Sequence[str | Path], dataset_name: str, *, remote: RemoteConfig | None = None
) -> Iterator[SequentialSample]:
    """Yield the samples of tars, here or at URLs, in order.

    Args:
        tars: paths or URLs of tars after the shard contract; keys are unique over all of them.
        dataset_name: as errors print it.

    Raises:
        ShardError: a tar cannot be fetched, is cut, or breaks the contract; nothing of it was yielded.
        SampleError: a clip's bytes differ from the checksum its metadata states.
    """
    webdataset.utils.enforce_security = True
    seen: set[int] = set()
    for tar in tars:
        name = safe_url(str(tar)).rpartition("/")[2]
        if not SHARD_NAME_PATTERN.fullmatch(name):
            raise ShardError(f"'{safe_url(str(tar))}': illegal shard name; letters, digits and _ . + - only")
        with tempfile.TemporaryDirectory(prefix="sequential-") as folder:
            path = Path(folder) / name
            if is_url(str(tar)):
                _fetch(str(tar), path, remote or RemoteConfig())
            elif Path(tar).is_file():
                path = Path(tar)
            else:
                raise ShardError(f"shard '{tar}' is not there; check the path")
            scanned = list(scan_tar(path))
            repeated = seen.intersection(sample.key_hash for sample in scanned)
            if repeated:
                raise ShardError(
                    f"'{name}' repeats {len(repeated)} keys of earlier shards; keys are unique within a set"
                )
            seen.update(sample.key_hash for sample in scanned)
            yield from _samples(path, dataset_name, scanned)


def _fetch(url: str, path: Path, config: RemoteConfig) -> None:
    parts = urlsplit(url)
    base, _, name = parts.path.rpartition("/")
    folder = RemoteFolder(urlunsplit(parts._replace(path=base)), config)
    try:
        folder.fetch_without_ranges(name, path, MAX_TAR_BYTES)
    finally:
        folder.close()


def _samples(path: Path, dataset_name: str, scanned: Sequence[ScannedSample]) -> Iterator[SequentialSample]:
    with path.open("rb") as stream:
        source = [{"url": path.name, "stream": stream}]
        members = webdataset.tariterators.tar_file_expander(source)
        grouped = webdataset.tariterators.group_by_keys(members)
        for sample, group in zip(scanned, grouped, strict=True):
            if group["__key__"] != sample.key:
                raise ShardError(f"'{path.name}': '{group['__key__']}' was read where '{sample.key}' was scanned")
            yield _checked(group, sample, path, Origin(dataset_name, path.name, sample.key))


def _checked(group: dict[str, Any], sample: ScannedSample, path: Path, origin: Origin) -> SequentialSample:
    metadata = parse_metadata(group["json"])
    stated = metadata["clips"]
    data = tuple(group[clip_suffix(k, len(stated), clip["encoding"])] for k, clip in enumerate(stated))
    for position, (encoded, clip) in enumerate(zip(data, stated, strict=True)):
        if hashlib.sha256(encoded).hexdigest() != clip["sha256"]:
            raise SampleError(origin, f"checksum of clip {position} differs from its metadata; restore the shard")
    clips = tuple(
        Clip(Path(path.name), row.offset, row.num_bytes, row.num_samples, clip["sha256"], clip["encoding"])
        for row, clip in zip(sample.clips, stated, strict=True)
    )
    return SequentialSample(build_record(metadata, origin, clips), data)
