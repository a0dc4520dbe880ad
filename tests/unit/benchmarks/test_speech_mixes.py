"""Drawn samples: as long as the corpora they stand for, and whole."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.speech_mixes import ANSWER_TOKENS, MIXES, clip_seconds, mix_samples
from qwen_audio_train.audio import lengths


@pytest.mark.parametrize("name", MIXES)
def test_a_few_clips_already_have_the_corpus_mean(name):
    mix = MIXES[name]
    draws = [clip_seconds(mix.mean_seconds, 8, np.random.default_rng(seed)) for seed in range(20)]
    assert np.mean(draws) == pytest.approx(mix.mean_seconds, rel=0.05)
    assert max(abs(draw.mean() / mix.mean_seconds - 1) for draw in draws) < 0.2
    assert all(np.std(np.log(draw)) > 0.25 for draw in draws)


def test_no_clip_is_too_short_or_too_long():
    seconds = clip_seconds(12.0, 5000, np.random.default_rng(0))
    assert seconds.max() == 30.0
    assert clip_seconds(0.6, 5000, np.random.default_rng(0)).min() == 0.5


def test_slots_mel_and_answers_belong_together():
    for sample in mix_samples(MIXES["3"], 6, mel_bins=4, audio_id=99, seed=2):
        prompt = sample.pair.prompt
        num_samples = round(sample.seconds * lengths.SAMPLING_RATE_HZ)
        assert (prompt.input_ids == 99).sum() == prompt.clip_tokens[0] == lengths.audio_tokens(num_samples)
        assert sample.clip.mel_MF.shape == (4, lengths.input_mel_frames(num_samples))
        assert len(prompt.input_ids) == prompt.clip_tokens[0] + 22
        for answer in (sample.pair.chosen_ids, sample.pair.rejected_ids):
            assert ANSWER_TOKENS[0] <= len(answer) <= ANSWER_TOKENS[1]
            assert 99 not in answer
        assert sample.answered.supervised.sum() == len(sample.pair.chosen_ids)


def test_the_same_seed_draws_the_same_samples():
    one, two, other = (mix_samples(MIXES["5"], 3, mel_bins=2, audio_id=50, seed=seed) for seed in (4, 4, 5))
    assert [s.seconds for s in one] == [s.seconds for s in two] != [s.seconds for s in other]
    assert all(np.array_equal(a.clip.mel_MF, b.clip.mel_MF) for a, b in zip(one, two, strict=True))
