"""Augmentation, keyed by what is augmented: the same sample in the same epoch always changes in the same way."""

from __future__ import annotations

import numpy as np

from qwen_audio_train.samples import FloatArray


def mask_token_spans(states_AD: FloatArray, *, seed: int, spans: int, longest_tokens: int) -> FloatArray:
    """SpecAugment's time masks on encoder outputs: ``spans`` stretches of 0 to ``longest_tokens`` rows set to zero.

    A stretch never covers more than a quarter of the clip.
    """
    # PCG64 by explicit integer arithmetic of its output: raw 64-bit words are fixed by the generator's definition.
    words = np.random.PCG64(seed).random_raw(2 * spans)
    num_tokens = len(states_AD)
    masked = states_AD.copy()
    for span in range(spans):
        width = int(words[2 * span] % (min(longest_tokens, num_tokens // 4) + 1))
        first = int(words[2 * span + 1] % (num_tokens - width + 1))
        masked[first : first + width] = 0
    return masked
