"""The nouns of the flow: what one part hands to the next, from a shard's entry to a batch on the device.

Reads top to bottom in the order of the flow: a shard holds *clips* and *records*; a record is *rendered* to token ids
from text and audio lengths alone; the *plan* chooses; a *batch* is what the model sees.

Letters in tensor names: B rows, S tokens of a row, N clips, F mel frames, M mel bins, A audio tokens, D width,
L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample comes from; printed in every error about it."""

    dataset: str
    shard: str
    key: str

    def __str__(self) -> str:
        return f"sample '{self.key}' in shard '{self.shard}' of dataset '{self.dataset}'"


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio clip as it lies in a tar: where its bytes are and how long it is, without reading it."""

    shard_path: Path
    offset_bytes: int
    num_bytes: int
    num_samples: int
    """True length at 16 kHz mono, after resampling."""
    sha256: str
    """Of the encoded bytes (hex)."""
    encoding: str
    """File suffix without the dot: flac, wav, mp3, ogg, opus."""
    xxh3: int | None = None
    """Of the encoded bytes, from the set's index: what reading compares, being ten times faster than sha256."""


@dataclass(frozen=True, slots=True)
class Record:
    """What all three payloads share."""

    origin: Origin
    clips: tuple[Clip, ...]
    source: str
    split: str
    license: str
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Metadata fields that the contract does not know, kept as they are (a prompt id, a judge's score)."""


TEXT_TASK: Final = "text"
"""Task of pretraining records without a clip: plain text, to keep what the language model knew."""


@dataclass(frozen=True, slots=True)
class PretrainRecord(Record):
    """One task on one clip: 'here is a clip, here is the natural-language prompt, this is the target'."""

    task: str
    """A name in prompts/tasks.py, for instance ``transcribe``."""
    audio_language: str
    """Empty for TEXT_TASK."""
    text_language: str
    text: str
    prompt: str | None = None
    """Overrides the task's own wording."""


@dataclass(frozen=True, slots=True)
class ChatRecord(Record):
    """A conversation. Voice chat and audio analysis differ only in what the user turns hold."""

    messages: tuple[Mapping[str, Any], ...]
    """Turns ``{"role", "content"}``; content is a string or a list of ``{"type": "audio"}`` and
    ``{"type": "text", "text": ...}`` parts. The k-th audio part stands for ``clips[k]``."""


@dataclass(frozen=True, slots=True)
class PreferenceRecord(Record):
    """A DPO triple (x, y_w, y_l): the conversation so far and two answers to its last user turn."""

    messages: tuple[Mapping[str, Any], ...]
    chosen: str
    rejected: str


IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A sample as token ids, each clip expanded to its true number of audio tokens."""

    input_ids: IntArray
    """Shape (S,)."""
    supervised: BoolArray
    """Shape (S,). True where the token itself is a target (the shift by one happens in the loss, once)."""
    clip_tokens: tuple[int, ...]
    """Audio tokens of each clip, in order of appearance."""


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """A preference sample: one prompt, two continuations, each with its end token."""

    prompt: Rendered
    """Ends with the generation prompt; nothing in it is supervised."""
    chosen_ids: IntArray
    rejected_ids: IntArray


FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """A clip ready for the encoder."""

    mel_MF: FloatArray
    """Log-mel of ``input_mel_frames`` frames: the valid ones and the context the convolutions see."""
    mel_frames: int
    """Valid frames."""


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A clip that a frozen encoder has seen before."""

    states_AD: FloatArray
    """One row an audio token, before the projector."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What the plan needs to know of every sample of a set: numbers only, one row a sample."""

    llm_tokens: IntArray
    """Shape (num_samples,). For a preference pair: of the prompt and both answers, or of two rows as long
    as prompt and longer answer where each answer has a prompt of its own."""
    supervised_tokens: IntArray
    encoder_frames: IntArray
    """20 ms encoder frames of all the sample's clips."""

    def __len__(self) -> int:
        return len(self.llm_tokens)


@dataclass(frozen=True, slots=True)
class AttentionSpans:
    """Who sees whom in a packed row: consecutive spans that fill it, each seeing itself and nothing of the others,
    except for a prefix that it continues (the prompt that both answers of a preference pair share).

    Plain numbers, so that attention kernels need not ask the device how long anything is. All tuples have one entry a
    span.
    """

    lengths: tuple[int, ...]
    """Positions of each span; span k starts where span k - 1 ends."""
    prefix_starts: tuple[int, ...] = ()
    """Where in the row the prefix of each span starts. Empty if no span has one."""
    prefix_lengths: tuple[int, ...] = ()
    """0: none."""

    @property
    def prefixes(self) -> tuple[tuple[int, int], ...]:
        """(start, length) of each span's prefix."""
        if not self.prefix_lengths:
            return ((0, 0),) * len(self.lengths)
        return tuple(zip(self.prefix_starts, self.prefix_lengths, strict=True))

    @property
    def num_positions(self) -> int:
        """Of the whole row."""
        return sum(self.lengths)

    def num_attended(self, *, is_causal: bool) -> int:
        """(query, key) pairs that attention looks at."""
        pairs = 0
        for length, (_, prefix_length) in zip(self.lengths, self.prefixes, strict=True):
            own = length * (length + 1) // 2 if is_causal else length * length
            pairs += own + length * prefix_length
        return pairs


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """What one micro-batch holds and what it costs to run once; sums of these describe a step."""

    supervised_tokens: int = 0
    llm_tokens: int = 0
    """Real tokens in the language model's rows."""
    llm_positions: int = 0
    """Positions that it runs, padding included."""
    llm_attended: int = 0
    """(query, key) pairs that its attention must look at: sum over real tokens of the tokens each one sees."""
    encoder_frames: int = 0
    """20 ms frames of the clips that are encoded; 0 when they were encoded before."""
    encoder_positions: int = 0
    """Frames that the encoder runs, padding included."""
    encoder_attended: int = 0
    audio_tokens: int = 0
    """Audio slots of all clips, encoded now or before."""

    def __add__(self, other: BatchSizes) -> BatchSizes:
        """Field by field."""
        return BatchSizes(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
