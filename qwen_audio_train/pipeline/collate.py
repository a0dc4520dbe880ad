"""Rendered samples and their clips -> the tensors the model is called with.

All index arithmetic is done here, on the CPU, with numpy: the model gathers and scatters by ready-made indices and
never asks the device how long anything is.

    audio_source (K,)  row of the flattened (N clips * A tokens) encoder states, one an audio slot
    audio_target (K,)  where it goes in the flattened (B rows * S tokens) batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.samples import ClipFeatures, EncodedClip, IntArray, Rendered, RenderedPair

IGNORE = -100
ClipInput = ClipFeatures | EncodedClip
Batch = dict[str, torch.Tensor]


def silent_clip(num_mel_bins: int) -> ClipFeatures:
    """The shortest clip the encoder takes; stands in where a batch has no audio, so that no rank skips a module."""
    num_frames = lengths.input_mel_frames(lengths.MIN_CLIP_SAMPLES)
    mel_frames = lengths.mel_frames(lengths.MIN_CLIP_SAMPLES)
    return ClipFeatures(np.zeros((num_mel_bins, num_frames), np.float32), mel_frames)


def silent_states(width: int) -> EncodedClip:
    """The same for batches of clips that were encoded before."""
    return EncodedClip(np.zeros((1, width), np.float32))


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches; knows only the ids it needs and what to put in place of missing audio."""

    pad_id: int
    audio_id: int
    dummy: ClipInput

    def rows(self, renders: Sequence[Rendered], clips: Sequence[Sequence[ClipInput]]) -> Batch:
        """One sample a row, padded on the right to the longest. No sample makes a row that asks for nothing.

        Returns:
            ``input_ids, attention_mask, labels`` (B, S), ``audio_source, audio_target`` (K,), and ``mels`` (N, M, F)
            with ``mel_frames`` (N,), or ``audio_states`` (N * A, D) when the clips come encoded.
        """
        batch = self._text([(r.input_ids, r.supervised) for r in renders] or [self._nothing()])
        return batch | self._audio(clips, renders, self._slots(batch))

    def prompts(self, renders: Sequence[Rendered], clips: Sequence[Sequence[ClipInput]]) -> Batch:
        """Prompts padded on the left, as generation wants them; no labels."""
        batch = self._text([(r.input_ids, r.supervised) for r in renders], pad_left=True)
        del batch["labels"]
        return batch | self._audio(clips, renders, self._slots(batch))

    def pairs(self, pairs: Sequence[RenderedPair], clips: Sequence[Sequence[ClipInput]]) -> Batch:
        """Preference pairs in TRL's layout: all chosen rows, then all rejected rows.

        Both halves name the same encoded clips, so a pair's audio is encoded once. ``completion_mask`` (2B, S) is 1 on
        the answers.
        """
        rows = [_continue(pair.prompt, pair.chosen_ids) for pair in pairs]
        rows += [_continue(pair.prompt, pair.rejected_ids) for pair in pairs]
        batch = self._text(rows or [self._nothing(), self._nothing()])
        batch["completion_mask"] = (batch.pop("labels") != IGNORE).long()
        return batch | self._audio(clips, [pair.prompt for pair in pairs], self._slots(batch), copies=2)

    def _nothing(self) -> tuple[IntArray, np.ndarray]:
        return np.full(2, self.pad_id, np.int32), np.zeros(2, np.bool_)

    def _text(self, rows: Sequence[tuple[IntArray, np.ndarray]], *, pad_left: bool = False) -> Batch:
        longest = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), longest), self.pad_id, np.int64)
        labels = np.full((len(rows), longest), IGNORE, np.int64)
        attention_mask = np.zeros((len(rows), longest), np.int64)
        for row, (ids, supervised) in enumerate(rows):
            span = slice(longest - len(ids), longest) if pad_left else slice(0, len(ids))
            input_ids[row, span] = ids
            labels[row, span] = np.where(supervised, ids, IGNORE)
            attention_mask[row, span] = 1
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in named.items()}

    def _slots(self, batch: Batch) -> np.ndarray:
        """Positions of the audio slots in the flattened rows, in order."""
        return np.flatnonzero(batch["input_ids"].numpy() == self.audio_id)

    def _audio(
        self,
        clips: Sequence[Sequence[ClipInput]],
        renders: Sequence[Rendered],
        slots: np.ndarray,
        copies: int = 1,
    ) -> Batch:
        """Encoder input and the two index vectors."""
        flat = [clip for sample in clips for clip in sample]
        tokens = [count for rendered in renders for count in rendered.clip_tokens]
        inputs = flat or [self.dummy]
        if isinstance(inputs[0], EncodedClip):
            batch, starts = _states([clip for clip in inputs if isinstance(clip, EncodedClip)])
        else:
            mels, mel_frames = stack_mels([clip for clip in inputs if isinstance(clip, ClipFeatures)])
            batch = {"mels": mels, "mel_frames": mel_frames}
            tokens_per_clip = lengths.encoder_frames(mels.shape[-1]) // 2
            starts = [index * tokens_per_clip for index in range(len(mels))]
        # strict=False: the dummy's start has no tokens to go with.
        sources = [start + np.arange(count) for start, count in zip(starts, tokens, strict=False)] * copies
        source = np.concatenate([np.zeros(0, np.int64), *sources])
        if len(flat) != len(tokens) or len(source) != len(slots):
            raise ValueError(
                f"{len(flat)} clips with {len(source)} audio tokens for {len(tokens)} spans with {len(slots)} slots: "
                "rendered samples and clips do not belong together"
            )
        return batch | {"audio_source": torch.from_numpy(source), "audio_target": torch.from_numpy(slots)}


def _continue(prompt: Rendered, answer_ids: IntArray) -> tuple[IntArray, np.ndarray]:
    supervised = np.concatenate([np.zeros(len(prompt.input_ids), np.bool_), np.ones(len(answer_ids), np.bool_)])
    return np.concatenate([prompt.input_ids, answer_ids]), supervised


def _states(clips: Sequence[EncodedClip]) -> tuple[Batch, list[int]]:
    states = np.concatenate([clip.states_AD for clip in clips]).astype(np.float32, copy=False)
    starts = np.cumsum([0, *(len(clip.states_AD) for clip in clips)])[:-1]
    return {"audio_states": torch.from_numpy(states)}, starts.tolist()


def num_tokens(clip: ClipInput) -> int:
    """Audio tokens that a clip gives."""
    if isinstance(clip, EncodedClip):
        return len(clip.states_AD)
    return lengths.encoder_frames(clip.mel_frames) // 2


def stack_mels(clips: Sequence[ClipFeatures]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mels (N, M, F) with zeros behind the shorter ones, and valid mel frames (N,)."""
    longest = max(clip.mel_MF.shape[1] for clip in clips)
    mels = np.zeros((len(clips), clips[0].mel_MF.shape[0], longest), np.float32)
    for index, clip in enumerate(clips):
        mels[index, :, : clip.mel_MF.shape[1]] = clip.mel_MF
    return torch.from_numpy(mels), torch.tensor([clip.mel_frames for clip in clips])
