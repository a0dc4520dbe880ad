"""The kernels that need CUDA, against attention span by span: values and gradients, pairs and grouped queries."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.model.span_attention import PackedRow, attend
from qwen_audio_train.samples import AttentionSpans
from tests.unit.model.test_span_attention import PAIRS, PLAIN

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
LONG = AttentionSpans((300, 17, 1, 129), (0, 100, 0, 0), (0, 200, 0, 0))


@pytest.mark.parametrize("kernel", [AttentionKernel.varlen, AttentionKernel.flash_attn])
@pytest.mark.parametrize(
    ("spans", "is_causal"), [(PLAIN, True), (PLAIN, False), (PAIRS, True), (LONG, True)], ids=str
)  # fmt: skip
@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_kernel_equals_splits_to_rounding(kernel, spans, is_causal, num_key_heads):
    if kernel is AttentionKernel.flash_attn and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    module = torch.nn.Module()
    module.is_causal = is_causal
    results = []
    for way in (AttentionKernel.splits, kernel):
        torch.manual_seed(0)
        heads = (4, num_key_heads, num_key_heads)
        made = [torch.randn(1, h, spans.num_positions, 64, device=CUDA, dtype=torch.bfloat16) for h in heads]
        made = [tensor.requires_grad_() for tensor in made]
        output, _ = attend(module, *made, None, scaling=0.125, spans=PackedRow(spans, way, CUDA))
        output.float().square().sum().backward()
        results.append([output, *(tensor.grad for tensor in made)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
