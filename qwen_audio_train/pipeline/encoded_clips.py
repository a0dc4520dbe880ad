"""Outputs of a frozen encoder, computed once a clip and kept on disk in full fp32, so that nothing changes by it.

Keyed by the encoder's weights and each clip's checksum: a changed encoder starts another folder, a clip that several
samples or sets share is encoded once. A 3 s clip of a 512-wide encoder takes 150 kB.

Disk is bounded: what is missing is known from the clips' lengths, and refused before anything is encoded if all folders
together would exceed the cap. Memory is bounded by the kernel: states are mapped, so what a batch reads is in the page
cache, which gives it up when something else needs the room; a process holds the index alone (300 bytes a clip).

    <cache_dir>/encoded/<encoder fingerprint>/states.f32    rows of D float32 values, clip after clip
                                              index.json    {"width": D, "clips": {sha256: [first row, rows]}}
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.pipeline.lanes import in_lanes
from qwen_audio_train.samples import Clip, EncodedClip, FloatArray, Origin
from qwen_audio_train.shards.reader import ShardSet

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 2000
"""20 ms encoder frames of one run of the encoder while filling: what stays near a core's caches."""

GB = 10**9
ENCODED = "encoded"
"""Below the cache's folder."""

Missing = tuple[Clip, Origin, ShardSet]
Encode = Callable[[Sequence[FloatArray], Sequence[int]], torch.Tensor]
"""(log-mels (M, F) of clips, their valid frames) -> states (A, D), clip after clip."""


class EncodedClips:
    """Reads the kept encoder states of clips."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.width = int(index["width"])
        self._rows: dict[str, list[int]] = index["clips"]
        self._states = np.memmap(folder / "states.f32", np.float32, "r").reshape(-1, self.width)

    def __contains__(self, clip: Clip) -> bool:
        return clip.sha256 in self._rows

    def read(self, clip: Clip) -> EncodedClip:
        """Encoder states (A, D) of a clip, without a copy."""
        first, count = self._rows[clip.sha256]
        return EncodedClip(self._states[first : first + count])


class Encoder(Protocol):
    """What filling needs of a model (model/efficient.py has it; this part knows no models)."""

    config: Any
    device: torch.device

    def encode_mels(self, mels_MF: Sequence[FloatArray], mel_frames: Sequence[int]) -> torch.Tensor:
        """States (A, D) of clips."""

    def encoder_fingerprint(self) -> str:
        """Identity of the encoder's weights."""


def encode_sets(
    model: Encoder,
    locations: Sequence[str],
    cache_dir: str,
    *,
    most_gb: float,
    remote: RemoteConfig | None = None,
    shows_progress: bool = True,
) -> EncodedClips:
    """The kept states of every clip of the sets in these folders or at these URLs; encodes what is missing first.

    Args:
        most_gb: cap on all that is kept below ``cache_dir``, of all encoders, in 1e9 bytes.

    Raises:
        ConfigError: what is missing does not fit under the cap, or on the disk.
    """
    audio = model.config.audio_config
    return fill(
        Path(cache_dir) / ENCODED / model.encoder_fingerprint(),
        [ShardSet.open(location, remote=remote) for location in locations],
        encode=model.encode_mels,
        width=audio.d_model,
        num_mel_bins=audio.num_mel_bins,
        device=model.device,
        most_bytes=int(most_gb * GB),
        shows_progress=shows_progress,
    )


def fill(
    folder: Path,
    sets: Sequence[ShardSet],
    *,
    encode: Encode,
    width: int,
    num_mel_bins: int,
    device: torch.device,
    most_bytes: int,
    shows_progress: bool,
) -> EncodedClips:
    """Encode the clips of some sets that the folder does not hold yet. Processes take turns.

    Args:
        device: where ``encode`` computes.
        most_bytes: cap on this folder and those beside it.

    Interrupted work is kept: states are appended first and named in the index after.

    Raises:
        ConfigError: what is missing does not fit under the cap, or on the disk; nothing was encoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index_path, states_path = folder / "index.json", folder / "states.f32"
    with (folder / "lock").open("w") as lock, states_path.open("ab") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the clips encoded
        index: dict[str, Any] = {"width": width, "clips": {}}
        if index_path.exists():
            index = json.loads(index_path.read_text(encoding="utf-8"))
        known = index["clips"]
        missing = _missing(sets, known)
        num_rows = sum(count for _, count in known.values())
        file.truncate(num_rows * width * 4)  # rows that no index names were cut off by an interruption
        _require_room(folder, missing, width=width, most_bytes=most_bytes)
        named = ", ".join(shards.name for shards in sets)
        bar = tqdm(total=len(missing), desc=f"Encoding {named}", unit="clip", disable=not shows_progress)
        try:
            groups = list(_groups(missing))
            readable = (_readable(group) for group in groups)
            encoded = in_lanes(lambda clips: _encode(clips, encode, num_mel_bins), readable, device=device)
            for group, clips_states in zip(groups, encoded, strict=True):
                for clip, states in clips_states:
                    file.write(states.tobytes())
                    known[clip.sha256] = [num_rows, len(states)]
                    num_rows += len(states)
                bar.update(len(group))
        finally:
            bar.close()
            file.flush()
            os.fsync(file.fileno())
            _write_index(index_path, index)
    return EncodedClips(folder)


def _require_room(folder: Path, missing: Sequence[Missing], *, width: int, most_bytes: int) -> None:
    """Raises ConfigError if the missing states do not fit; else says how much they take."""
    needed = sum(lengths.audio_tokens(clip.num_samples) for clip, _, _ in missing) * width * 4
    own = (folder / "states.f32").stat().st_size
    others = sum(path.stat().st_size for path in folder.parent.glob("*/states.f32")) - own
    free = shutil.disk_usage(folder).free
    told = (
        f"encoder outputs of {len(missing):,} clips take {needed / GB:.3f} GB, beside {own / GB:.3f} GB of this "
        f"encoder and {others / GB:.3f} GB of others in {folder.parent}"
    )
    total, remedy = needed + own + others, "choose another cache_dir, or encode_once=false"
    if needed and total > most_bytes:
        raise ConfigError(
            f"{told}: encoded_cache_gb={most_bytes / GB:g} is exceeded. Set encoded_cache_gb={_rounded_up(total)} or "
            f"more, delete folders of other encoders there, {remedy}"
        )
    if needed > free:
        raise ConfigError(f"{told}: the disk has {free / GB:.3f} GB left. Make room, {remedy}")
    if needed:
        logger.warning("%s (encoded_cache_gb=%g)", told[0].upper() + told[1:], most_bytes / GB)


def _rounded_up(num_bytes: int) -> str:
    """In GB, enough digits, never less."""
    return f"{math.ceil(num_bytes / GB * 1000) / 1000:g}"


def _missing(sets: Sequence[ShardSet], known: dict[str, list[int]]) -> list[Missing]:
    """Clips to encode, each once, longest first: the slowest group comes first and like lengths stand together."""
    found: dict[str, Missing] = {}
    for shards in sets:
        for i in range(len(shards)):
            try:
                record = shards.record(i)
            except SampleError as error:
                logger.warning("Not encoded: %s", error)  # training quarantines it
                continue
            for clip in record.clips:
                if clip.sha256 not in known:
                    found.setdefault(clip.sha256, (clip, record.origin, shards))
    return sorted(found.values(), key=lambda item: (-item[0].num_samples, item[0].sha256))


def _groups(clips: Sequence[Missing]) -> Iterator[list[Missing]]:
    group: list[Missing] = []
    for clip in clips:
        longest = lengths.encoder_frames(lengths.mel_frames((group or [clip])[0][0].num_samples))
        if group and longest * (len(group) + 1) > FRAMES_AT_ONCE:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _readable(group: Sequence[Missing]) -> list[tuple[Clip, Samples]]:
    """Clips with their audio. One that cannot be read is left out, and each sample that needs it fails in training."""
    read = []
    for clip, origin, shards in group:
        try:
            read.append((clip, shards.read_clip(clip, origin)))
        except SampleError as error:
            logger.warning("Not encoded: %s", error)
    return read


def _encode(clips: list[tuple[Clip, Samples]], encode: Encode, num_mel_bins: int) -> list[tuple[Clip, np.ndarray]]:
    """Clips with their encoder states (A, D). Runs in a lane."""
    if not clips:
        return []
    log_mel = LogMel(num_mel_bins)
    mels_MF = [log_mel(samples) for _, samples in clips]
    with torch.no_grad():
        states_AD = encode(mels_MF, [lengths.mel_frames(len(samples)) for _, samples in clips]).float().cpu().numpy()
    ends = np.cumsum([lengths.audio_tokens(len(samples)) for _, samples in clips])
    return [(clip, states) for (clip, _), states in zip(clips, np.split(states_AD, ends[:-1]), strict=True)]


def _write_index(path: Path, index: dict[str, object]) -> None:
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(index), encoding="utf-8")
    os.replace(staged, path)
