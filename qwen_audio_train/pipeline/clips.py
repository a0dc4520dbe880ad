"""Where a batch gets its clips from: decoded and featurised now, or as a frozen encoder saw them before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.augment import Augmenter, mask_token_spans
from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.errors import SampleError
from qwen_audio_train.pipeline.collate import ClipInput
from qwen_audio_train.pipeline.encoded_clips import EncodedClips
from qwen_audio_train.samples import Clip, ClipFeatures, EncodedClip, Origin
from qwen_audio_train.shards.reader import ShardSet


class ClipSource(Protocol):
    """Clips as the model takes them. ``key`` is ``augmentation_key`` of (run seed and source, epoch, sample, clip)."""

    def heard(self, clip: Clip, *, key: int) -> Clip:
        """The clip with the length that it has in this epoch: what is rendered for it."""

    def read(self, clip: Clip, origin: Origin, *, key: int) -> ClipInput:
        """The clip. Raises SampleError, ShardError or OSError where it cannot be had."""


@dataclass(frozen=True, slots=True)
class MelSource:
    """Decodes, augments and featurises at true length."""

    shards: ShardSet
    log_mel: LogMel
    augmenter: Augmenter | None = None

    def heard(self, clip: Clip, *, key: int) -> Clip:
        """At the speed that this epoch draws."""
        if self.augmenter is None:
            return clip
        return replace(clip, num_samples=self.augmenter.output_samples(clip.num_samples, key))

    def read(self, clip: Clip, origin: Origin, *, key: int) -> ClipInput:
        """Log-mel of the clip."""
        samples = self.shards.read_clip(clip, origin)
        if self.augmenter is not None:
            samples = self.augmenter.waveform(samples, key)
        features = ClipFeatures(self.log_mel(samples), lengths.mel_frames(len(samples)))
        return features if self.augmenter is None else self.augmenter.features(features, key)


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """Takes what the frozen encoder said before, optionally with spans masked."""

    encoded: EncodedClips
    mask_spans: int = 0
    mask_span_tokens: int = 0

    def heard(self, clip: Clip, *, key: int) -> Clip:
        """As it is."""
        return clip

    def read(self, clip: Clip, origin: Origin, *, key: int) -> ClipInput:
        """Encoder states of the clip."""
        if clip not in self.encoded:
            raise SampleError(origin, "the clip could not be encoded when the encoder's outputs were kept")
        states = self.encoded.read(clip).states_AD
        if self.mask_spans:
            states = mask_token_spans(states, seed=key, spans=self.mask_spans, longest_tokens=self.mask_span_tokens)
        return EncodedClip(states)


@dataclass(frozen=True, slots=True)
class ClipNoises:
    """The clips of a shard set as noises: the first clip of each sample."""

    shards: ShardSet

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, number: int) -> Samples:
        """Raises SampleError where the noise cannot be had; the clip that it was for is then left out."""
        record = self.shards.record(number)
        if not record.clips:
            raise SampleError(record.origin, "a sample without a clip among the noises")
        return self.shards.read_clip(record.clips[0], record.origin)
