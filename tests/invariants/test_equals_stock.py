"""The licence of the fast path: in fp32 it equals stock transformers on the same weights and clips."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.pipeline.collate import Collator, silent_clip, to_device
from qwen_audio_train.samples import ClipFeatures, Rendered
from tests import builders

# What stock pads to. Most lengths run against a 3 s window: the same code, a tenth of the frames and of the time.
SHORT_SECONDS, FULL_SECONDS = 3, 30
# (mel frames, encoder frames): 4 and 2; 5 and 3; 6 and 3; 7 and 4; 209 and 105; 300 less the last two and 149.
SHORT_CLIPS = [481, 642, 960, 961, 33_333, 298 * 160]
FULL_CLIPS = [481, 160_001, 479_999, 480_000]


class Pair:
    """A stock model and the efficient one with the same weights."""

    def __init__(self, seconds: int) -> None:
        self.stock = builders.stock_model(max_clip_seconds=seconds).train()
        self.efficient = EfficientQwen2Audio(copy.deepcopy(self.stock.config)).train()
        self.efficient.load_state_dict(self.stock.state_dict())
        self.extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
        self.log_mel = LogMel(80)


@pytest.fixture(scope="module")
def short() -> Pair:
    return Pair(SHORT_SECONDS)


@pytest.fixture(scope="module")
def full() -> Pair:
    return Pair(FULL_SECONDS)


def render(clip_samples: list[int], seed: int) -> Rendered:
    """Random text around the clips' slots, the second half of the text supervised."""
    generator = np.random.default_rng(seed)
    ids: list[int] = generator.integers(0, 200, 3).tolist()
    for num_samples in clip_samples:
        ids += builders.audio_slots(num_samples) + generator.integers(0, 200, 2).tolist()
    answer = generator.integers(0, 200, 4 + seed % 5).tolist()
    supervised = [False] * len(ids) + [True] * len(answer)
    return Rendered(
        np.array(ids + answer, np.int32),
        np.array(supervised),
        tuple(lengths.audio_tokens(num_samples) for num_samples in clip_samples),
    )


def stock_scores(pair: Pair, rendered: Rendered, clips: list[np.ndarray]) -> torch.Tensor:
    """Log-probabilities of one sample by stock transformers: padding to the whole window, full logits."""
    inputs, device = {}, pair.stock.device
    if clips:
        features = pair.extractor(
            clips, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt"
        )
        inputs = {
            "input_features": features.input_features.to(device, pair.stock.dtype),
            "feature_attention_mask": features.attention_mask.to(device),
        }
    ids = torch.tensor(rendered.input_ids, device=device).long()[None]
    logits = pair.stock(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits
    log_probs = logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return log_probs[torch.tensor(rendered.supervised[1:], device=device)]


def efficient_scores(pair: Pair, renders: list[Rendered], clips: list[list[np.ndarray]], layout: str) -> torch.Tensor:
    """Log-probabilities of all labels, one sample after another."""
    batch, _ = Collator(0, builders.AUDIO_ID, silent_clip(80), layout).rows(
        renders, [[ClipFeatures(pair.log_mel(c), lengths.mel_frames(len(c))) for c in sample] for sample in clips]
    )
    return pair.efficient(**to_device(batch, pair.efficient.device)).log_probs


def check(
    pair: Pair,
    clip_samples_of_rows: list[list[int]],
    layout: str = "packed",
    kernel: AttentionKernel = AttentionKernel.auto,
    *,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """``tolerance``: of loss and log-probabilities; gradients may differ by twice as much of their largest value."""
    pair.efficient.attention_kernel = kernel
    stock, efficient = pair.stock, pair.efficient
    renders = [render(samples, seed) for seed, samples in enumerate(clip_samples_of_rows)]
    clips = [[builders.noise_clip(n, seed) for n in row] for seed, row in enumerate(clip_samples_of_rows)]
    stock.zero_grad()
    efficient.zero_grad()
    expected = [stock_scores(pair, r, c) for r, c in zip(renders, clips, strict=True)]
    num_tokens = sum(len(e) for e in expected)
    stock_loss = -sum(e.sum() for e in expected) / num_tokens
    stock_loss.backward()
    scores = efficient_scores(pair, renders, clips, layout)
    loss = -scores.sum() / num_tokens
    loss.backward()
    log_prob_difference = float((scores - torch.cat(expected)).abs().max())
    gradient_difference = 0.0
    for (name, a), (_, b) in zip(stock.named_parameters(), efficient.named_parameters(), strict=True):
        if not a.requires_grad:
            continue
        a_grad = torch.zeros_like(a) if a.grad is None else a.grad
        b_grad = torch.zeros_like(b) if b.grad is None else b.grad
        # The key projection of the encoder has no bias, so no gradient is identically zero by symmetry.
        scale = max(float(a_grad.abs().max()), 1e-4)
        difference = float((a_grad - b_grad).abs().max()) / scale
        assert difference < 2 * tolerance, f"gradient of {name} differs by {difference:.2e} of its largest value"
        gradient_difference = max(gradient_difference, difference)
    assert abs(float(loss) - float(stock_loss)) < tolerance
    assert log_prob_difference < tolerance
    return {"log_probs": log_prob_difference, "gradients": gradient_difference}


HOWS = pytest.mark.parametrize(
    ("layout", "kernel"),
    [("packed", AttentionKernel.splits), ("packed", AttentionKernel.mask), ("padded", AttentionKernel.splits)],
    ids=["splits", "mask", "padded"],
)


@pytest.mark.parametrize("num_samples", SHORT_CLIPS)
def test_one_clip_equals_stock(short, num_samples):
    check(short, [[num_samples]])


def test_clips_up_to_30_s_equal_stock_padded_to_30_s(full):
    check(full, [[num_samples] for num_samples in FULL_CLIPS])


@HOWS
def test_mixed_batch_equals_stock_one_by_one(short, layout, kernel):
    check(short, [[961], [], [33_333, 642], [47_000], [16_159]], layout, kernel)


@HOWS
def test_text_only_batch_equals_stock_and_still_calls_the_encoder(short, layout, kernel):
    calls = []
    handle = short.efficient.model.audio_tower.layers[0].register_forward_hook(lambda *_: calls.append(1))
    check(short, [[], []], layout, kernel)
    handle.remove()
    assert calls, "a batch without audio must make the same module calls as one with audio (ZeRO-3 would hang)"
