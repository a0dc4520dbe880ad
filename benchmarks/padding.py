"""Share of what a step runs that is padding, in the bins that the plan makes of many samples."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.our_steps import our_bins
from benchmarks.speech_mixes import MIXES, mix_samples
from benchmarks.step_costs import run_by_stock
from benchmarks.stock_steps import stock_batches
from qwen_audio_train.samples import BatchSizes

TOKENS_PER_BIN = 4096
"""The product's default."""
STOCK_ROWS = 4
ANY_VOCAB = 1000


def padding(samples_per_mix: int) -> dict[str, Any]:
    """Nothing runs: the collators say what they made.

    Returns:
        ``llm_padding`` and ``encoder_padding`` over all mixes, and by mix; beside them the same of stock batches of 4.
    """
    cpu = torch.device("cpu")
    by_mix: dict[str, dict[str, float]] = {}
    total, stock_total = BatchSizes(), BatchSizes()
    for number, (name, mix) in enumerate(MIXES.items()):
        # One mel bin: contents do not matter here.
        samples = mix_samples(mix, samples_per_mix, mel_bins=1, audio_id=ANY_VOCAB - 1, seed=number)
        bins = our_bins(samples, TOKENS_PER_BIN, pairs=False, device=cpu, vocab=ANY_VOCAB)
        sizes = sum((bin_.sizes for bin_ in bins), BatchSizes())
        rows = stock_batches(samples, STOCK_ROWS, pairs=False, device=cpu, dtype=torch.float32)
        stock = sum((run_by_stock(*batch["input_ids"].shape) for batch in rows), BatchSizes())
        by_mix[name] = _shares(sizes, stock)
        total, stock_total = total + sizes, stock_total + stock
    return {
        **_shares(total, stock_total),
        "by_mix": by_mix,
        "stock_rows": STOCK_ROWS,
        "samples_per_mix": samples_per_mix,
    }


def _shares(sizes: BatchSizes, stock: BatchSizes) -> dict[str, float]:
    return {
        "llm_padding": 1 - sizes.llm_tokens / sizes.llm_positions,
        "encoder_padding": 1 - sizes.encoder_frames / sizes.encoder_positions,
        "stock_llm_padding": 1 - sizes.llm_tokens / stock.llm_tokens,
        "stock_encoder_padding": 1 - sizes.encoder_frames / stock.encoder_frames,
    }
