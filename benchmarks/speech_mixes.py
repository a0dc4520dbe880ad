"""Samples whose lengths are those of real corpora: a clip, a prompt with its slots, two short answers.

Contents are noise, lengths are not: time, memory and padding depend on lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qwen_audio_train.audio import lengths
from qwen_audio_train.samples import ClipFeatures, Rendered, RenderedPair

SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 30.0
SPREAD = 0.45
"""Standard deviation of the logarithm of a clip's seconds."""
TEXT_BEFORE, TEXT_BEHIND = 10, 12
"""Prompt tokens around the clip: a chat turn's frame and a short question."""
ANSWER_TOKENS = (8, 40)
"""Fewest and most."""


@dataclass(frozen=True, slots=True)
class Mix:
    """One corpus' lengths."""

    like: str
    mean_seconds: float


MIXES = {
    "3": Mix("short commands", 3.0),
    "5": Mix("Common Voice", 5.0),
    "10": Mix("AIR-Bench", 10.0),
    "12": Mix("LibriSpeech", 12.0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A preference pair; its prompt with the chosen answer is the SFT sample."""

    pair: RenderedPair
    clip: ClipFeatures
    seconds: float

    @property
    def answered(self) -> Rendered:
        """The SFT sample."""
        prompt, answer = self.pair.prompt, self.pair.chosen_ids
        supervised = np.concatenate([prompt.supervised, np.ones(len(answer), np.bool_)])
        return Rendered(np.concatenate([prompt.input_ids, answer]), supervised, prompt.clip_tokens)


def clip_seconds(mean_seconds: float, count: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """Log-normal lengths in random order, shape (count,): one from each of ``count`` equally likely ranges, so that a
    few samples have the corpus' mean."""
    ranks = (np.arange(count) + draw.uniform(0.05, 0.95, count)) / count
    normal = np.array([NormalDist().inv_cdf(rank) for rank in ranks])
    seconds = np.exp(np.log(mean_seconds) - SPREAD**2 / 2 + SPREAD * normal)
    return draw.permutation(seconds.clip(SHORTEST_SECONDS, LONGEST_SECONDS))


def draw_samples(seconds: Sequence[float], *, mel_bins: int, audio_id: int, seed: int) -> list[Sample]:
    """A sample for each length. ``audio_id`` is the vocabulary's last id; text is drawn from those below it."""
    draw = np.random.default_rng(seed)
    return [_sample(draw, int(length * lengths.SAMPLING_RATE_HZ), mel_bins, audio_id) for length in seconds]


def mix_samples(mix: Mix, count: int, *, mel_bins: int, audio_id: int, seed: int) -> list[Sample]:
    """``count`` samples of a mix, in random order."""
    seconds = clip_seconds(mix.mean_seconds, count, np.random.default_rng([seed, 1])).tolist()
    return draw_samples(seconds, mel_bins=mel_bins, audio_id=audio_id, seed=seed)


def _sample(draw: np.random.Generator, num_samples: int, mel_bins: int, audio_id: int) -> Sample:
    def text(count: int) -> npt.NDArray[np.int32]:
        return draw.integers(1, audio_id, count).astype(np.int32)

    slots = lengths.audio_tokens(num_samples)
    ids = np.concatenate([text(TEXT_BEFORE), np.full(slots, audio_id, np.int32), text(TEXT_BEHIND)])
    fewest, most = ANSWER_TOKENS
    answers = [text(int(count)) for count in draw.integers(fewest, most + 1, 2)]
    mel = draw.standard_normal((mel_bins, lengths.input_mel_frames(num_samples)), dtype=np.float32)
    return Sample(
        RenderedPair(Rendered(ids, np.zeros(len(ids), np.bool_), (slots,)), *answers),
        ClipFeatures(mel, lengths.mel_frames(num_samples)),
        num_samples / lengths.SAMPLING_RATE_HZ,
    )
