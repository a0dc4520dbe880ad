"""Every kernel of packed rows against attention of each span alone, values and gradients."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.span_attention import PackedRow, agrees_with_splits, attend, choose_kernel
from qwen_audio_train.samples import AttentionSpans

CPU = torch.device("cpu")
PLAIN = AttentionSpans((3, 1, 5))
# A prompt of 3 with answers of 2 and 4 behind it, a plain span, a prompt of 2 with answers of 1 and 1.
PAIRS = AttentionSpans((5, 4, 2, 3, 1), (0, 0, 0, 0, 11), (0, 3, 0, 0, 2))
NUM_HEADS, NUM_KEY_HEADS, WIDTH = 4, 2, 8


def inputs(spans: AttentionSpans) -> list[torch.Tensor]:
    torch.manual_seed(0)
    heads = (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)
    return [torch.randn(1, h, spans.num_positions, WIDTH, requires_grad=True) for h in heads]


def alone(q, k, v, spans: AttentionSpans, is_causal: bool) -> torch.Tensor:
    """Every span by itself, written out."""
    k, v = (t.repeat_interleave(NUM_HEADS // NUM_KEY_HEADS, dim=1) for t in (k, v))
    outputs, start = [], 0
    for length, (prefix, prefix_length) in zip(spans.lengths, spans.prefixes, strict=True):
        seen = [*range(prefix, prefix + prefix_length), *range(start, start + length)]
        scores = q[:, :, start : start + length] @ k[:, :, seen].transpose(-1, -2) * 0.3
        if is_causal:
            later = [[key > start + i for key in seen] for i in range(length)]
            scores = scores.masked_fill(torch.tensor(later), -torch.inf)
        outputs.append((scores.softmax(-1) @ v[:, :, seen]).transpose(1, 2))
        start += length
    return torch.cat(outputs, dim=1)


def as_flash_attention(q, k, v, offsets_q, offsets_k, max_q, max_k, *, scale, is_causal) -> torch.Tensor:
    """What FlashAttention documents: causality is aligned to the end of the keys."""
    assert offsets_q.dtype == offsets_k.dtype == torch.int32
    assert max_q == offsets_q.diff().max()
    assert max_k == offsets_k.diff().max()
    outputs = []
    for (a, b), (c, d) in zip(offsets_q.unfold(0, 2, 1).tolist(), offsets_k.unfold(0, 2, 1).tolist(), strict=True):
        one = [t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d])]
        one[1:] = [t.repeat_interleave(one[0].shape[1] // t.shape[1], dim=1) for t in one[1:]]
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - b + a) if is_causal else None
        outputs.append(scaled_dot_product_attention(*one, mask, scale=scale)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def flash_kernels(monkeypatch):
    """Stand-ins for the kernels that need CUDA, by what they document."""

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        assert window_size in ((-1, 0), (-1, -1))
        return as_flash_attention(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, is_causal=window_size[1] == 0)

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
        return as_flash_attention(q, k, v, cu_q, cu_k, max_q, max_k, scale=softmax_scale, is_causal=causal)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.mark.parametrize("kernel", [k for k in AttentionKernel if k is not AttentionKernel.auto])
@pytest.mark.parametrize(
    ("spans", "is_causal"), [(PLAIN, True), (PLAIN, False), (PAIRS, True)], ids=["causal", "both-ways", "pairs"]
)
def test_each_span_sees_itself_and_its_prefix(kernel, spans, is_causal, flash_kernels):
    module = torch.nn.Module()
    module.is_causal = is_causal
    ours, theirs = inputs(spans), inputs(spans)
    row = PackedRow(spans, kernel, CPU)
    got, weights = attend(module, *ours, None, scaling=0.3, spans=row)
    expected = alone(*theirs, spans, is_causal)
    assert weights is None
    assert row.num_uses == 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(expected)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_a_row_whose_prefix_begins_elsewhere_gives_something_else(flash_kernels):
    """Or the test above would not notice."""
    moved = AttentionSpans(PAIRS.lengths, (0, 1, 0, 0, 11), PAIRS.prefix_lengths)
    module = torch.nn.Module()
    for kernel in (AttentionKernel.splits, AttentionKernel.mask, AttentionKernel.varlen):
        got, _ = attend(module, *inputs(moved), None, scaling=0.3, spans=PackedRow(moved, kernel, CPU))
        assert (got - alone(*inputs(PAIRS), PAIRS, True)).abs().max() > 1e-2


def test_pairs_attended_are_counted():
    assert PLAIN.num_attended(is_causal=True) == 6 + 1 + 15
    assert PLAIN.num_attended(is_causal=False) == 9 + 1 + 25
    assert PAIRS.num_attended(is_causal=True) == PackedRow(PAIRS, AttentionKernel.mask, CPU).dense_mask.tril().sum()


def test_dropout_is_applied_whatever_the_kernel():
    module = torch.nn.Module()
    row, given = PackedRow(PLAIN, AttentionKernel.varlen, CPU), inputs(PLAIN)
    first, second = (attend(module, *given, None, dropout=0.5, spans=row)[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"sliding_window": 4}])
def test_what_spans_cannot_do_is_refused(options):
    with pytest.raises(ConfigError, match="padded"):
        attend(torch.nn.Module(), *inputs(PLAIN), None, spans=PackedRow(PLAIN, AttentionKernel.splits, CPU), **options)


def test_a_window_longer_than_every_span_changes_nothing():
    row = PackedRow(PLAIN, AttentionKernel.splits, CPU)
    plain, _ = attend(torch.nn.Module(), *inputs(PLAIN), None, spans=row)
    windowed, _ = attend(torch.nn.Module(), *inputs(PLAIN), None, spans=row, sliding_window=5)
    assert torch.equal(plain, windowed)


@pytest.mark.parametrize("kernel", [AttentionKernel.varlen, AttentionKernel.flash_attn])
def test_a_kernel_that_keeps_the_convention_agrees_with_splits(kernel, flash_kernels):
    assert agrees_with_splits(kernel, CPU, torch.bfloat16)


def test_a_causal_mask_aligned_to_the_first_key_is_noticed(flash_kernels, monkeypatch, caplog):
    def aligned_to_the_start(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        outputs = []
        for (a, b), (c, d) in zip(cu_q.unfold(0, 2, 1).tolist(), cu_k.unfold(0, 2, 1).tolist(), strict=True):
            one = [t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d])]
            is_causal = window_size == (-1, 0)
            outputs.append(scaled_dot_product_attention(*one, is_causal=is_causal, scale=scale, enable_gqa=True)[0])
        return torch.cat([o.transpose(0, 1) for o in outputs])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", aligned_to_the_start)
    assert not agrees_with_splits(AttentionKernel.varlen, CPU, torch.bfloat16)
    assert "varlen is off by" in caplog.text


def test_a_kernel_that_fails_is_not_used(monkeypatch, caplog):
    def unsupported(*_, **__):
        raise RuntimeError("no kernel for this head width")

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", unsupported)
    assert not agrees_with_splits(AttentionKernel.varlen, CPU, torch.bfloat16)
    assert "no kernel for this head width" in caplog.text


def test_auto_takes_the_fastest_that_there_is(monkeypatch):
    choose = choose_kernel.__wrapped__  # it answers once a process, and this machine changes
    cuda, auto = torch.device("cuda"), AttentionKernel.auto
    wrong = set()
    monkeypatch.setattr(
        "qwen_audio_train.model.span_attention.agrees_with_splits", lambda kernel, *_: kernel not in wrong
    )
    assert choose(auto, CPU, torch.bfloat16) is AttentionKernel.splits
    assert choose(auto, cuda, torch.float32) is AttentionKernel.splits
    assert choose(auto, cuda, torch.bfloat16) is AttentionKernel.varlen
    assert choose(AttentionKernel.mask, cuda, torch.bfloat16) is AttentionKernel.mask
    known = {"flash_attn": object(), "torch.nn.attention.varlen": object()}
    monkeypatch.setattr("importlib.util.find_spec", known.get)
    assert choose(auto, cuda, torch.bfloat16) is AttentionKernel.flash_attn
    wrong.add(AttentionKernel.flash_attn)
    assert choose(auto, cuda, torch.bfloat16) is AttentionKernel.varlen
    with pytest.raises(ConfigError, match="does not give what splits gives"):
        choose(AttentionKernel.flash_attn, cuda, torch.bfloat16)
    known.clear()
    assert choose(auto, cuda, torch.bfloat16) is AttentionKernel.splits
    with pytest.raises(ConfigError, match="is not installed"):
        choose(AttentionKernel.flash_attn, cuda, torch.bfloat16)


def test_the_choice_costs_a_step_nothing(monkeypatch):
    """It is asked for every row of every forward, and looks for packages on the disk."""
    asked = (AttentionKernel.auto, torch.device("cuda:7"), torch.bfloat16)
    looked = []
    monkeypatch.setattr("importlib.util.find_spec", looked.append)
    try:
        assert {choose_kernel(*asked) for _ in range(3)} == {AttentionKernel.splits}
        assert sorted(looked) == ["flash_attn", "torch.nn.attention.varlen"]
    finally:
        choose_kernel.cache_clear()


@pytest.mark.parametrize("kernel", [AttentionKernel.varlen])
def test_a_kernel_that_cannot_run_here_is_refused(kernel):
    with pytest.raises(ConfigError, match="16-bit values on CUDA"):
        choose_kernel(kernel, CPU, torch.float32)
