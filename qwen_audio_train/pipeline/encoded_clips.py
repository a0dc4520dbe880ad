"""Outputs of a frozen encoder, computed once a clip and kept on disk in full fp32, so that nothing changes by it.

Keyed by the encoder's weights and each clip's checksum: a changed encoder starts another folder, a clip that several
samples or sets share is encoded once. A 3 s clip of a 512-wide encoder takes 150 kB.

    <cache_dir>/encoded/<encoder fingerprint>/states.f32    rows of D float32 values, clip after clip
                                              index.json    {"width": D, "clips": {sha256: [first row, rows]}}
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
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
from qwen_audio_train.errors import SampleError
from qwen_audio_train.pipeline.lanes import in_lanes
from qwen_audio_train.samples import Clip, EncodedClip, FloatArray, Origin
from qwen_audio_train.shards.reader import ShardSet

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 2000
"""20 ms encoder frames of one run of the encoder while filling: what stays near a core's caches."""

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


def encode_set(
    model: Encoder, location: str, cache_dir: str, *, remote: RemoteConfig | None = None, shows_progress: bool = True
) -> EncodedClips:
    """The kept states of every clip of the set in this folder or at this URL; encodes what is missing first."""
    audio = model.config.audio_config
    folder = Path(cache_dir) / "encoded" / model.encoder_fingerprint()
    return fill(
        folder,
        ShardSet.open(location, remote=remote),
        encode=model.encode_mels,
        width=audio.d_model,
        num_mel_bins=audio.num_mel_bins,
        device=model.device,
        shows_progress=shows_progress,
    )


def fill(
    folder: Path,
    shards: ShardSet,
    *,
    encode: Encode,
    width: int,
    num_mel_bins: int,
    device: torch.device,
    shows_progress: bool,
) -> EncodedClips:
    """Encode the clips of a set that the folder does not hold yet. Processes take turns.

    Args:
        device: where ``encode`` computes.

    Interrupted work is kept: states are appended first and named in the index after.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index_path, states_path = folder / "index.json", folder / "states.f32"
    with (folder / "lock").open("w") as lock, states_path.open("ab") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, and then finds the clips encoded
        index: dict[str, Any] = {"width": width, "clips": {}}
        if index_path.exists():
            index = json.loads(index_path.read_text(encoding="utf-8"))
        known = index["clips"]
        missing = _missing(shards, known)
        num_rows = sum(count for _, count in known.values())
        file.truncate(num_rows * width * 4)  # rows that no index names were cut off by an interruption
        bar = tqdm(total=len(missing), desc=f"Encoding {shards.name}", unit="clip", disable=not shows_progress)
        try:
            groups = list(_groups(missing))
            readable = (_readable(group, shards) for group in groups)
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


def _missing(shards: ShardSet, known: dict[str, list[int]]) -> list[tuple[Clip, Origin]]:
    """Clips to encode, each once, longest first: the slowest group comes first and like lengths stand together."""
    found: dict[str, tuple[Clip, Origin]] = {}
    for i in range(len(shards)):
        try:
            record = shards.record(i)
        except SampleError as error:
            logger.warning("Not encoded: %s", error)  # training quarantines it
            continue
        for clip in record.clips:
            if clip.sha256 not in known:
                found.setdefault(clip.sha256, (clip, record.origin))
    return sorted(found.values(), key=lambda item: (-item[0].num_samples, item[0].sha256))


def _groups(clips: list[tuple[Clip, Origin]]) -> Iterator[list[tuple[Clip, Origin]]]:
    group: list[tuple[Clip, Origin]] = []
    for clip in clips:
        longest = lengths.encoder_frames(lengths.mel_frames((group or [clip])[0][0].num_samples))
        if group and longest * (len(group) + 1) > FRAMES_AT_ONCE:
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _readable(group: list[tuple[Clip, Origin]], shards: ShardSet) -> list[tuple[Clip, Samples]]:
    """Clips with their audio. One that cannot be read is left out, and each sample that needs it fails in training."""
    read = []
    for clip, origin in group:
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
