"""The licence of the fast path, on a CUDA device: fp32 equals stock, bf16 errs no more than stock does in bf16."""

from __future__ import annotations

import pytest
import torch

from tests import builders
from tests.invariants import test_equals_stock as on_cpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TOLERANCE = 1e-4
"""CUDA's kernels for stock's shapes and ours sum in other orders."""
CLIPS = [481, 642, 800, 961, 16_000, 16_159, 33_333, 47_999, 160_001, 479_999, 480_000]
MIXED_ROWS = [[961], [], [33_333, 642], [47_999], [160_001, 16_159], [480_000]]


@pytest.fixture(autouse=True)
def _exact_float32():
    """torch's default lets convolutions round to TF32; matrix products are exact by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on_cuda(dtype: torch.dtype = torch.float32) -> on_cpu.Pair:
    pair = on_cpu.Pair(on_cpu.FULL_SECONDS)
    pair.stock.to("cuda", dtype)
    pair.efficient.to("cuda", dtype)
    return pair


@pytest.fixture(scope="module")
def pair():
    return on_cuda()


@pytest.mark.parametrize("num_samples", CLIPS)
def test_one_clip_equals_stock(pair, num_samples):
    on_cpu.check(pair, [[num_samples]], tolerance=TOLERANCE)


def test_mixed_batch_equals_stock_one_by_one(pair):
    on_cpu.check(pair, MIXED_ROWS, tolerance=TOLERANCE)


def test_text_only_batch_equals_stock(pair):
    on_cpu.check(pair, [[], []], tolerance=TOLERANCE)


@torch.no_grad()
def test_bfloat16_errs_no_more_than_stock_in_bfloat16(pair):
    renders = [on_cpu.render(samples, seed) for seed, samples in enumerate(MIXED_ROWS)]
    clips = [[builders.noise_clip(n, seed) for n in row] for seed, row in enumerate(MIXED_ROWS)]
    expected = torch.cat([on_cpu.stock_scores(pair, r, c) for r, c in zip(renders, clips, strict=True)])
    rounded = on_cuda(torch.bfloat16)
    of_stock = torch.cat([on_cpu.stock_scores(rounded, r, c) for r, c in zip(renders, clips, strict=True)])
    of_efficient = on_cpu.efficient_scores(rounded, renders, clips, "packed")
    stock_error, error = (float((got - expected).abs().mean()) for got in (of_stock, of_efficient))
    assert 0 < error < 0.05
    assert error < 1.5 * stock_error, f"mean error {error:.4f}, stock {stock_error:.4f}"
