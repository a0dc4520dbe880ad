"""Step time against tokens in the row: a packed row of 16,000 tokens must cost what sixteen of 1,000 cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.our_steps import Bin, our_bins, our_loss
from benchmarks.random_model import Dimensions, build_plain, with_lora
from benchmarks.speech_mixes import MIXES, Sample, mix_samples
from benchmarks.step_ratios import timed
from qwen_audio_train.model.efficient import EfficientQwen2Audio


def row_scaling(
    dims: Dimensions, device: torch.device, dtype: torch.dtype, rows: Sequence[int], repetitions: int, *, lora: bool
) -> dict[str, Any]:
    """Seconds a token of an SFT step of one row, by the row's tokens; attention included: it stays within samples, so
    its share does not grow with the row.

    Returns:
        ``row_scaling``, the dearest row's seconds a token over the cheapest's, and every repetition.
    """
    model: Any = build_plain(EfficientQwen2Audio, dims, device, dtype)
    if lora:
        model = with_lora(model, trains_encoder=True)
    bins = {tokens: row_of(tokens, dims, device) for tokens in rows}

    def run(bin_: Bin) -> None:
        our_loss(model, bin_, bin_.sizes.supervised_tokens).backward()
        model.zero_grad()

    run(bins[rows[0]])
    found: dict[int, list[float]] = {tokens: [] for tokens in rows}
    for _ in range(repetitions):
        for tokens, bin_ in bins.items():
            # Short rows several times over, so that all are timed over a like number of tokens.
            times = min(8, max(rows) // tokens)
            seconds = sum(timed(lambda b=bin_: run(b), device) for _ in range(times)) / times  # type: ignore[misc]
            found[tokens].append(seconds / bin_.sizes.llm_tokens)
    medians = {tokens: statistics.median(seconds) for tokens, seconds in found.items()}
    return {
        "row_scaling": max(medians.values()) / min(medians.values()),
        "seconds_per_token": {str(tokens): seconds for tokens, seconds in found.items()},
        "tokens": {str(tokens): bin_.sizes.llm_tokens for tokens, bin_ in bins.items()},
        "dimensions": {"llm_layers": dims.llm_layers, "encoder_layers": dims.encoder_layers},
    }


def row_of(tokens: int, dims: Dimensions, device: torch.device) -> Bin:
    """One bin of Common Voice-like samples, of at most so many tokens and little less."""
    drawn = mix_samples(MIXES["5"], max(2, tokens // 60), mel_bins=dims.mel_bins, audio_id=dims.vocab - 1, seed=tokens)
    chosen: list[Sample] = []
    total = 0
    for sample in drawn:
        size = len(sample.answered.input_ids)
        if total + size <= tokens:
            chosen.append(sample)
            total += size
    bins = our_bins(chosen, total, pairs=False, device=device, vocab=dims.vocab)
    assert len(bins) == 1
    return bins[0]
