"""Log-probabilities of both answers of a set's pairs under the reference model, kept beside the set.

    <set>/reference_scores/<key>.safetensors     log_probs (samples of the set, 2) float32: of the chosen and of the
                                                 rejected answer; NaN where a pair could not be used. Its header says
                                                 what they depend on, and has their checksum
                           .<key>.parts/         finished bins of a computation that goes on or was interrupted

The key is a hash of the identity: set, selection, tokenizer, rendering, the reference's weights and how they compute.
Where the set's folder cannot be written, or is at a URL, ``<cache_dir>/reference_scores/<set>/`` has the same files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwen_audio_train.config.remote import is_url
from qwen_audio_train.errors import CheckpointError, SampleError
from qwen_audio_train.pipeline.quarantine import Failure, json_line
from qwen_audio_train.samples import FloatArray, Origin
from qwen_audio_train.shards.files import publish_file, temporary_path
from qwen_audio_train.shards.reader import ShardSet

logger = logging.getLogger(__name__)

FOLDER = "reference_scores"
REFERENCE_KEYS = ("ref_chosen_logps", "ref_rejected_logps")
"""trl's names for them in a batch, (pairs,) each."""
FORMAT_VERSION = 1
"""Raise when scores are computed or kept in another way, so that older files are not trusted any more."""
SUFFIX = ".safetensors"
REASONS_KEPT = 1000
"""Unusable pairs whose reason stands in the header; the NaNs tell of all."""
AGAIN = "delete it, and the next run computes it again"
WORDS = {
    "format": "the version of this format",
    "set": "the samples of the set",
    "selection": "which samples are taken, and how they are asked",
    "tokenizer": "the tokenizer",
    "rendering": "how prompts and answers become tokens",
    "weights": "the weights of the reference",
    "architecture": "the configuration of the reference",
    "precision": "the dtype of its weights",
    "autocast": "the dtype it computes in",
    "settings": "settings of the model that change its numbers",
    "clips": "whether clips were encoded before",
}
"""What the identity's parts are to people."""

Identity = Mapping[str, str]
_RECORD = np.dtype([("sample", "<i8"), ("chosen", "<f4"), ("rejected", "<f4")])
_FRAME = np.dtype([("count", "<u4"), ("crc32", "<u4")])


@dataclass(frozen=True, slots=True)
class ReferenceScores:
    """What the reference says of a set's pairs."""

    path: Path
    log_probs: FloatArray
    """Shape (samples of the set, 2): chosen, rejected."""

    def require(self, number: int, origin: Origin) -> None:
        """Raises SampleError: the pair could not be used when they were computed."""
        if np.isnan(self.log_probs[number]).any():
            raise SampleError(
                origin,
                f"no log-probability of the reference: the pair could not be used when {self.path} was made, whose "
                f"header says why; if it can be used now, {AGAIN}",
            )


def key_of(identity: Identity) -> str:
    """Hash (hex) of all parts."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()


def file_name(identity: Identity) -> str:
    """Of the file with the scores of this identity."""
    return f"{key_of(identity)}{SUFFIX}"


def places(shards: ShardSet, cache_dir: Path) -> tuple[Path, ...]:
    """Folders in which the set's files may lie; the first is where a new one goes."""
    below_cache = cache_dir / FOLDER / f"{shards.name}-{shards.fingerprint}"
    if is_url(shards.source.location):
        return (below_cache,)
    beside = shards.directory / FOLDER
    if os.access(beside if beside.exists() else shards.directory, os.W_OK):
        return beside, below_cache
    return below_cache, beside


def find(folders: Sequence[Path], identity: Identity) -> Path | None:
    """The file of this identity, if it is in one of the folders. Says so when there are only files of others."""
    name = file_name(identity)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    others = Counter(_difference(path, identity) for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}")))
    if others:
        told = "; ".join(f"{count} differ(s) in {difference}" for difference, count in others.items())
        where = " and ".join(str(folder) for folder in folders if folder.is_dir())
        logger.warning("Reference log-probabilities in %s are of something else and not used: %s", where, told)
    return None


def open_scores(path: Path, identity: Identity, num_samples: int) -> ReferenceScores:
    """The scores in a file, if they are those of ``identity``.

    Raises:
        CheckpointError: they are not, and in what they differ; or the file is damaged.
    """
    header = _header(path)
    differing = _differing(header.get("identity"), identity)
    if differing:
        told = "; ".join(f"{WORDS.get(part, part)} ({part}: {old}, now {new})" for part, old, new in differing)
        raise CheckpointError(f"{path} is stale and not used. What differs: {told}. Remedy: {AGAIN}")
    try:
        with safe_open(path, framework="numpy") as file:
            log_probs = file.get_tensor("log_probs")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {AGAIN}") from error
    if _checksum(log_probs) != header.get("sha256"):
        raise CheckpointError(f"{path} is damaged (its checksum differs): {AGAIN}")
    if log_probs.shape != (num_samples, 2) or log_probs.dtype != np.float32:
        raise CheckpointError(
            f"{path} holds {log_probs.dtype} of shape {log_probs.shape} for {num_samples} samples: {AGAIN}"
        )
    log_probs.flags.writeable = False
    return ReferenceScores(path, log_probs)


def publish(path: Path, log_probs: FloatArray, identity: Identity, unusable: Sequence[Failure]) -> None:
    """Write a file, whole or not at all.

    Args:
        log_probs: shape (samples of the set, 2).
        unusable: why pairs are NaN.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = [{"sample": u.sample, "key": u.key, "reason": u.reason} for u in unusable[:REASONS_KEPT]]
    metadata = {
        "identity": json.dumps(dict(identity), sort_keys=True),
        "sha256": _checksum(log_probs),
        "num_unusable": str(len(unusable)),
        "unusable": json.dumps(reasons, ensure_ascii=False),
    }
    save_file({"log_probs": np.ascontiguousarray(log_probs)}, temporary_path(path), metadata=metadata)
    publish_file(path)


class Parts:
    """Finished bins of one computation, kept through interruptions: any number of ranks add, the first one merges."""

    def __init__(self, path: Path) -> None:
        """``path``: of the file that is to be made."""
        self.folder = path.with_name(f".{path.stem}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process and start: nobody appends to what an interruption may have cut.
        self._name = uuid.uuid4().hex

    def add(self, samples: Sequence[int], log_probs: FloatArray, failures: Sequence[Failure]) -> None:
        """Keep a bin: numbers of its usable pairs in the set, their log-probabilities (pairs, 2), and what failed."""
        records = np.empty(len(samples), _RECORD)
        records["sample"], records["chosen"], records["rejected"] = samples, log_probs[:, 0], log_probs[:, 1]
        frame = np.array((len(records), zlib.crc32(records.tobytes())), _FRAME)
        with (self.folder / f"{self._name}.part").open("ab") as file:
            file.write(frame.tobytes() + records.tobytes())
        if failures:
            with (self.folder / f"{self._name}.jsonl").open("ab") as file:
                file.write(b"".join(json_line(asdict(failure)) for failure in failures))

    def read(self) -> npt.NDArray[Any]:
        """Records (sample, chosen, rejected) of all finished bins; what was cut or damaged is as if it were not."""
        found = [np.empty(0, _RECORD)]
        for path in sorted(self.folder.glob("*.part")):
            data = path.read_bytes()
            start = 0
            while start + _FRAME.itemsize <= len(data):
                frame = np.frombuffer(data, _FRAME, 1, start)[0]
                start += _FRAME.itemsize
                payload = data[start : start + int(frame["count"]) * _RECORD.itemsize]
                start += len(payload)
                if len(payload) != int(frame["count"]) * _RECORD.itemsize or zlib.crc32(payload) != frame["crc32"]:
                    break
                found.append(np.frombuffer(payload, _RECORD))
        return np.concatenate(found)

    def failures(self) -> dict[int, Failure]:
        """The last failure of each sample that failed and was not scored later."""
        scored = set(self.read()["sample"].tolist())
        failed = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    failure = Failure(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # cut off by an interruption
                failed[failure.sample] = failure
        return {sample: failure for sample, failure in failed.items() if sample not in scored}

    def remove(self) -> None:
        """They are merged."""
        shutil.rmtree(self.folder, ignore_errors=True)


def digest_of_ids(rows: Sequence[Sequence[npt.NDArray[Any]]]) -> str:
    """Hash (hex) of arrays of token ids."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        for ids in row:
            digest.update(np.asarray(ids, "<i4").tobytes() + b"|")
    return digest.hexdigest()


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {AGAIN}") from error


def _differing(kept: str | None, identity: Identity) -> list[tuple[str, str, str]]:
    """(part, there, here) of each part that is not the same."""
    try:
        there = json.loads(kept or "{}")
        parts = list(dict.fromkeys([*identity, *there]))
    except (ValueError, TypeError):
        there, parts = {}, list(identity)
    pairs = ((part, str(there.get(part, "nothing")), str(identity.get(part, "nothing"))) for part in parts)
    return [(part, old, new) for part, old, new in pairs if old != new]


def _difference(path: Path, identity: Identity) -> str:
    try:
        differing = _differing(_header(path).get("identity"), identity)
    except CheckpointError:
        return "everything: unreadable"
    return ", ".join(part for part, _, _ in islice(differing, 4)) or "name"


def _checksum(log_probs: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(log_probs, "<f4").tobytes()).hexdigest()
