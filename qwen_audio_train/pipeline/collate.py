"""Rendered samples and their clips -> the tensors the model is called with.

All index arithmetic is done here, on the CPU, with numpy: the model gathers and scatters by ready-made indices and
never asks the device how long anything is. A batch is one entry, ``rows``:

    input_ids (B, S)       with ``position_ids`` (1, S) and ``spans`` where samples are packed into one row, or with
                           ``attention_mask`` (B, S) where each sample has a row of its own
    audio_source (K,)      row of the encoder states, one an audio slot
    audio_target (K,)      where it goes in the flattened (B * S) rows
    mels, ...              the clips (``pack_clips``), or ``audio_states`` (A, D) when they were encoded before
    predict_from (L,)      position of the flattened rows that predicts each label
    label_ids (L,)         the labels

A batch of preference pairs has beside it what trl sees: the answers alone, as rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.pack_clips import pack_clips
from qwen_audio_train.samples import (
    AttentionSpans,
    BatchSizes,
    ClipFeatures,
    EncodedClip,
    IntArray,
    Rendered,
    RenderedPair,
)

ClipInput = ClipFeatures | EncodedClip
Batch = dict[str, Any]
Positions = npt.NDArray[np.int64]


def silent_clip(num_mel_bins: int) -> ClipFeatures:
    """The shortest clip the encoder takes; stands in where a batch has no audio, so that no rank skips a module."""
    num_frames = lengths.input_mel_frames(lengths.MIN_CLIP_SAMPLES)
    mel_frames = lengths.mel_frames(lengths.MIN_CLIP_SAMPLES)
    return ClipFeatures(np.zeros((num_mel_bins, num_frames), np.float32), mel_frames)


def silent_states(width: int) -> EncodedClip:
    """The same for batches of clips that were encoded before."""
    return EncodedClip(np.zeros((1, width), np.float32))


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors there."""
    moved: Batch = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            moved[name] = to_device(value, device)
        else:
            moved[name] = value.to(device) if isinstance(value, torch.Tensor) else value
    return moved


def num_tokens(clip: ClipInput) -> int:
    """Audio tokens that a clip gives."""
    if isinstance(clip, EncodedClip):
        return len(clip.states_AD)
    return lengths.encoder_frames(clip.mel_frames) // 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a row: token ids, where they stand in their text, and which of them are labels."""

    ids: IntArray
    first_position: int
    labels: Positions
    """Places within ``ids`` that are to be predicted."""
    predict_first_from: int = -1
    """Place, relative to the piece's start, of the token that predicts its first one."""
    prefix_length: int = 0
    """Tokens right at the start of the piece before that this one continues, too."""


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches; knows only the ids it needs and what to put in place of missing audio."""

    pad_id: int
    audio_id: int
    dummy: ClipInput
    layout: Literal["packed", "padded"] = "packed"

    def rows(self, renders: Sequence[Rendered], clips: Sequence[Sequence[ClipInput]]) -> tuple[Batch, BatchSizes]:
        """Samples to be learnt token by token. No sample makes a row that asks for nothing."""
        pieces = [Piece(r.input_ids, 0, np.flatnonzero(r.supervised[1:]) + 1) for r in renders]
        rows, sizes = self._texts(pieces or [self._nothing()])
        audio, audio_sizes = self._audio(clips, renders, self._slots(rows))
        return {"rows": rows | audio}, sizes + audio_sizes

    def prompts(self, renders: Sequence[Rendered], clips: Sequence[Sequence[ClipInput]]) -> Batch:
        """Prompts padded on the left, as generation wants them: arguments of ``embed`` and an attention mask."""
        rows, _ = self._padded([Piece(r.input_ids, 0, np.zeros(0, np.int64)) for r in renders], pad_left=True)
        del rows["predict_from"], rows["label_ids"]
        audio, _ = self._audio(clips, renders, self._slots(rows))
        return rows | audio

    def pairs(self, pairs: Sequence[RenderedPair], clips: Sequence[Sequence[ClipInput]]) -> tuple[Batch, BatchSizes]:
        """Preference pairs. A pair's audio is encoded once, and in packed rows its prompt is run once.

        Returns:
            Beside ``rows``, trl's layout of the answers, all chosen and then all rejected: ``input_ids``,
            ``attention_mask`` and ``completion_mask`` (2P, 1 + longest answer), the first column standing for the
            prompt; and in ``rows`` also ``label_places`` (L,), where each label stands in the flattened
            (2P, longest answer).
        """
        answers = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
        prompts = [pair.prompt for pair in pairs]
        if self.layout == "packed":
            rows, sizes = self._packed([p for pair in pairs for p in _branches(pair)] or [self._nothing()])
            order = [side * len(pairs) + number for number in range(len(pairs)) for side in (0, 1)]
            audio, audio_sizes = self._audio(clips, prompts, self._slots(rows))
        else:
            whole = [_continued(p, a) for p, a in zip(prompts * 2, answers, strict=True)]
            rows, sizes = self._padded(whole or [self._nothing()])
            order = list(range(len(answers)))
            audio, audio_sizes = self._audio(clips, prompts, self._slots(rows), copies=2)
        seen = _as_trl_sees(answers, self.pad_id)
        longest = seen["input_ids"].shape[1] - 1
        places = [number * longest + np.arange(len(answers[number])) for number in order]
        rows["label_places"] = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places]))
        return {"rows": rows | audio, **seen}, sizes + audio_sizes

    def _nothing(self) -> Piece:
        return Piece(np.full(2, self.pad_id, np.int32), 0, np.zeros(0, np.int64))

    def _texts(self, pieces: Sequence[Piece]) -> tuple[Batch, BatchSizes]:
        return self._packed(pieces) if self.layout == "packed" else self._padded(pieces)

    def _packed(self, pieces: Sequence[Piece]) -> tuple[Batch, BatchSizes]:
        """One row of all pieces."""
        starts = np.cumsum([0, *(len(piece.ids) for piece in pieces)])[:-1].tolist()
        spans = _spans(pieces, starts)
        named = {
            "input_ids": np.concatenate([piece.ids for piece in pieces]).astype(np.int64)[None],
            "position_ids": np.concatenate([p.first_position + np.arange(len(p.ids)) for p in pieces])[None],
            **_labels(pieces, starts),
        }
        rows: Batch = {name: torch.from_numpy(array) for name, array in named.items()}
        sizes = BatchSizes(
            supervised_tokens=len(named["label_ids"]),
            llm_tokens=spans.num_positions,
            llm_positions=spans.num_positions,
            llm_attended=spans.num_attended(is_causal=True),
        )
        return rows | {"spans": spans}, sizes

    def _padded(self, pieces: Sequence[Piece], *, pad_left: bool = False) -> tuple[Batch, BatchSizes]:
        """A row a piece."""
        longest = max(len(piece.ids) for piece in pieces)
        input_ids = np.full((len(pieces), longest), self.pad_id, np.int64)
        attention_mask = np.zeros((len(pieces), longest), np.int64)
        for row, piece in enumerate(pieces):
            place = slice(longest - len(piece.ids), longest) if pad_left else slice(0, len(piece.ids))
            input_ids[row, place] = piece.ids
            attention_mask[row, place] = 1
        starts = [row * longest for row in range(len(pieces))]
        named = {"input_ids": input_ids, "attention_mask": attention_mask, **_labels(pieces, starts)}
        own = AttentionSpans(tuple(len(piece.ids) for piece in pieces))
        sizes = BatchSizes(
            supervised_tokens=len(named["label_ids"]),
            llm_tokens=own.num_positions,
            llm_positions=input_ids.size,
            llm_attended=own.num_attended(is_causal=True),
        )
        return {name: torch.from_numpy(array) for name, array in named.items()}, sizes

    def _slots(self, rows: Batch) -> Positions:
        """Positions of the audio slots in the flattened rows, in order."""
        return np.flatnonzero(rows["input_ids"].numpy() == self.audio_id)

    def _audio(
        self,
        clips: Sequence[Sequence[ClipInput]],
        renders: Sequence[Rendered],
        slots: Positions,
        copies: int = 1,
    ) -> tuple[Batch, BatchSizes]:
        """Encoder input and the two index vectors. ``copies``: how often the rows name each clip."""
        flat = [clip for sample in clips for clip in sample]
        tokens = [count for rendered in renders for count in rendered.clip_tokens]
        source = np.tile(np.arange(sum(tokens)), copies)
        if [num_tokens(clip) for clip in flat] != tokens or len(source) != len(slots):
            raise ValueError(
                f"{len(flat)} clips of {sum(map(num_tokens, flat))} audio tokens for {len(tokens)} spans of "
                f"{sum(tokens)} with {len(slots)} slots: rendered samples and clips do not belong together"
            )
        batch, sizes = _encoder_input(flat or [self.dummy])
        named = {"audio_source": torch.from_numpy(source), "audio_target": torch.from_numpy(slots)}
        return batch | named, sizes + BatchSizes(audio_tokens=sum(tokens))


def _encoder_input(clips: Sequence[ClipInput]) -> tuple[Batch, BatchSizes]:
    if isinstance(clips[0], EncodedClip):
        states = [clip.states_AD for clip in clips if isinstance(clip, EncodedClip)]
        return {"audio_states": torch.from_numpy(np.concatenate(states).astype(np.float32, copy=False))}, BatchSizes()
    packed = pack_clips([clip for clip in clips if isinstance(clip, ClipFeatures)])
    spans: AttentionSpans = packed["clip_spans"]
    return packed, BatchSizes(
        encoder_frames=spans.num_positions,
        # The stem runs the context and the gaps between clips too.
        encoder_positions=packed["mels"].shape[1] // 2,
        encoder_attended=spans.num_attended(is_causal=False),
    )


def _branches(pair: RenderedPair) -> tuple[Piece, Piece]:
    """The prompt with its chosen answer, and the rejected answer that continues the same prompt."""
    length = len(pair.prompt.input_ids)
    chosen = _continued(pair.prompt, pair.chosen_ids)
    rejected = Piece(
        pair.rejected_ids,
        first_position=length,
        labels=np.arange(len(pair.rejected_ids)),
        predict_first_from=-len(pair.chosen_ids) - 1,
        prefix_length=length,
    )
    return chosen, rejected


def _continued(prompt: Rendered, answer_ids: IntArray) -> Piece:
    length = len(prompt.input_ids)
    return Piece(np.concatenate([prompt.input_ids, answer_ids]), 0, length + np.arange(len(answer_ids)))


def _spans(pieces: Sequence[Piece], starts: Sequence[int]) -> AttentionSpans:
    lengths_of = tuple(len(piece.ids) for piece in pieces)
    if not any(piece.prefix_length for piece in pieces):
        return AttentionSpans(lengths_of)
    return AttentionSpans(
        lengths_of,
        prefix_starts=tuple(starts[k - 1] if piece.prefix_length else 0 for k, piece in enumerate(pieces)),
        prefix_lengths=tuple(piece.prefix_length for piece in pieces),
    )


def _labels(pieces: Sequence[Piece], starts: Sequence[int]) -> dict[str, Positions]:
    sources = [np.zeros(0, np.int64)]
    ids = [np.zeros(0, np.int64)]
    for piece, start in zip(pieces, starts, strict=True):
        sources.append(start + np.where(piece.labels == 0, piece.predict_first_from, piece.labels - 1))
        ids.append(piece.ids[piece.labels].astype(np.int64))
    return {"predict_from": np.concatenate(sources), "label_ids": np.concatenate(ids)}


def _as_trl_sees(answers: Sequence[IntArray], pad_id: int) -> Batch:
    """Answers as rows behind one column of prompt. Nothing at all is a pair of rows without an answer."""
    rows = len(answers) or 2
    longest = max((len(ids) for ids in answers), default=1)
    input_ids = np.full((rows, 1 + longest), pad_id, np.int64)
    completion_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(answers):
        input_ids[row, 1 : 1 + len(ids)] = ids
        completion_mask[row, 1 : 1 + len(ids)] = 1
    attention_mask = completion_mask.copy()
    attention_mask[:, 0] = 1
    named = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
    return {name: torch.from_numpy(array) for name, array in named.items()}
