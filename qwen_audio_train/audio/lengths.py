"""Integer length arithmetic of the Whisper / Qwen2-Audio front end: samples -> mel frames -> encoder frames -> tokens.

Source: facts of the released model's code (Whisper feature extractor, ``_get_feat_extract_output_lengths``). Pure
integers, so that a plan can be made without touching audio.
"""

from __future__ import annotations

SAMPLING_RATE_HZ = 16_000
HOP_SAMPLES = 160
"""10 ms."""
MAX_CLIP_SECONDS = 30
MAX_CLIP_SAMPLES = MAX_CLIP_SECONDS * SAMPLING_RATE_HZ
MAX_MEL_FRAMES = MAX_CLIP_SAMPLES // HOP_SAMPLES
MIN_CLIP_SAMPLES = 321
"""Shortest clip that yields one audio token (3 mel frames -> 2 encoder frames -> 1 token)."""
CONTEXT_MEL_FRAMES = 2
"""Real mel frames beyond the clip's last that the stem's convolutions see (even lengths need 1, odd lengths 2)."""


def mel_frames(num_samples: int) -> int:
    """Valid 10 ms mel frames of a clip of ``num_samples`` at 16 kHz."""
    return min(-(-num_samples // HOP_SAMPLES), MAX_MEL_FRAMES)


def encoder_frames(num_mel_frames: int) -> int:
    """20 ms frames after the stride-2 convolution, which is the length the encoder's attention runs at."""
    return (num_mel_frames - 1) // 2 + 1


def audio_tokens(num_samples: int) -> int:
    """40 ms tokens that a clip takes in the language model (an odd last encoder frame is dropped by the pooling)."""
    return encoder_frames(mel_frames(num_samples)) // 2


def input_mel_frames(num_samples: int) -> int:
    """Mel frames to compute for a clip: the valid ones and the context its convolutions see, at most 30 s."""
    return min(mel_frames(num_samples) + CONTEXT_MEL_FRAMES, MAX_MEL_FRAMES)
