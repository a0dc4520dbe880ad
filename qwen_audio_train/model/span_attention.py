"""Attention in packed rows: each span sees itself, and the prefix that it continues, and nothing else.

One attention function, registered with transformers under ``SPANS``, serves encoder and language model. Called without
spans it is stock ``sdpa``. With them it runs one of these, all equal in exact arithmetic:

    splits      one scaled_dot_product_attention a span; exact on every device, no work outside of the spans
    varlen      torch's variable-length FlashAttention (CUDA, 16-bit)
    flash_attn  the flash-attn package's (CUDA, 16-bit, where it is installed)
    mask        one call with a dense mask; quadratic in the row, for comparison

FlashAttention aligns a causal mask to the end of the keys. So a span with a prefix is a query of its own length over
the keys of prefix and span, and one call serves plain rows and the rows of preference pairs alike.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.samples import AttentionSpans

logger = logging.getLogger(__name__)

SPANS: Final = "qwen_audio_train_spans"
"""Name under which transformers knows the function."""


class PackedRow:
    """The spans of one row, ready for a device. Made once a forward, used by every layer."""

    def __init__(self, spans: AttentionSpans, kernel: AttentionKernel, device: torch.device) -> None:
        self.spans = spans
        self.kernel = kernel
        self.device = device
        self.num_uses = 0
        """Layers that attended by these spans: a language model that drops unknown arguments would use none."""
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    @cached_property
    def num_keys(self) -> list[int]:
        """Keys of each span: prefix and itself."""
        return [prefix + length for (_, prefix), length in zip(self.spans.prefixes, self.spans.lengths, strict=True)]

    @property
    def has_prefixes(self) -> bool:
        """Whether any span continues another."""
        return any(self.spans.prefix_lengths)

    @cached_property
    def query_offsets(self) -> torch.Tensor:
        """Shape (spans + 1,), int32."""
        return self._offsets(list(self.spans.lengths))

    @cached_property
    def key_offsets(self) -> torch.Tensor:
        """Shape (spans + 1,), int32."""
        return self._offsets(self.num_keys)

    @cached_property
    def key_rows(self) -> torch.Tensor | None:
        """Positions of all spans' keys, one span after another; None where they are simply the row's."""
        if not self.has_prefixes:
            return None
        rows: list[torch.Tensor] = []
        start = 0
        for length, (prefix_start, prefix) in zip(self.spans.lengths, self.spans.prefixes, strict=True):
            rows += [torch.arange(prefix_start, prefix_start + prefix), torch.arange(start, start + length)]
            start += length
        return torch.cat(rows).to(self.device, non_blocking=True)

    @cached_property
    def dense_mask(self) -> torch.Tensor:
        """Shape (positions, positions), bool: who sees whom, before causality."""
        sees = torch.zeros(self.spans.num_positions, self.spans.num_positions, dtype=torch.bool)
        start = 0
        for length, (prefix_start, prefix) in zip(self.spans.lengths, self.spans.prefixes, strict=True):
            sees[start : start + length, start : start + length] = True
            sees[start : start + length, prefix_start : prefix_start + prefix] = True
            start += length
        return sees.to(self.device)

    def continuation_mask(self, num_queries: int, num_keys: int) -> torch.Tensor:
        """Shape (queries, keys), bool: causal, the last query at the last key."""
        mask = self._masks.get((num_queries, num_keys))
        if mask is None:
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries).to(self.device)
            self._masks[num_queries, num_keys] = mask
        return mask

    def _offsets(self, lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(self.device, non_blocking=True)


class _Call(NamedTuple):
    """What a kernel is given. Query (1, H, S, D), key and value (1, Hkv, S, D); it returns (1, S, H, D)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    row: PackedRow
    is_causal: bool
    scaling: float | None
    dropout: float

    def repeated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value, (1, H, S, D): once for each query head."""
        num_groups = self.query.shape[1] // self.key.shape[1]
        return repeat_kv(self.key, num_groups), repeat_kv(self.value, num_groups)

    def flat(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(positions, heads, D) of each; keys and values of all spans one after another."""
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (self.query, self.key, self.value))
        if self.row.key_rows is not None:
            k, v = k.index_select(0, self.row.key_rows), v.index_select(0, self.row.key_rows)
        return q.contiguous(), k.contiguous(), v.contiguous()


@cache
def choose_kernel(wanted: AttentionKernel, device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """What ``auto`` stands for on this device, or ``wanted`` itself if it can run there. Found out once a process.

    Raises:
        ConfigError: it cannot, or gives something else than ``splits`` there.
    """
    is_half = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if wanted is AttentionKernel.auto:
        fast = [kernel for kernel, module in _FLASH_MODULES.items() if is_half and importlib.util.find_spec(module)]
        return next((kernel for kernel in fast if agrees_with_splits(kernel, device, dtype)), AttentionKernel.splits)
    if wanted not in _FLASH_MODULES:
        return wanted
    if importlib.util.find_spec(_FLASH_MODULES[wanted]) is None:
        why = "is not installed"
    elif not is_half:
        why = f"needs 16-bit values on CUDA; this is {dtype} on {device.type}"
    elif not agrees_with_splits(wanted, device, dtype):
        why = f"does not give what splits gives on {device} (see the log)"
    else:
        return wanted
    raise ConfigError(f"model.attention={wanted.value} {why}: choose splits, or auto")


@torch.no_grad()
def agrees_with_splits(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel gives what ``splits`` gives on a small row with prefixes.

    Where a causal mask is aligned if keys outnumber queries is a convention of libraries, which has changed before. A
    kernel that follows another one would train on wrong answers without a word.
    """
    spans = AttentionSpans((5, 4, 2, 3, 1), (0, 0, 0, 0, 11), (0, 3, 5, 0, 3))
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, spans.num_positions, 64, generator=draw).to(device, dtype) for heads in (4, 2, 2)
    )
    for is_causal in (True, False):
        found = []
        for candidate in (AttentionKernel.splits, kernel):
            call = _Call(query, key, value, PackedRow(spans, candidate, device), is_causal, None, 0.0)
            try:
                found.append(_KERNELS[candidate](call).float())
            except RuntimeError as error:
                logger.warning("Attention by %s cannot run on %s: %s", candidate.value, device, error)
                return False
        difference = float((found[0] - found[1]).abs().max())
        if difference > _ROUNDING:
            logger.warning("Attention by %s is off by %.2g on %s: not used", kernel.value, difference, device)
            return False
    return True


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    spans: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function. Query (1, H, S, D), key and value (1, Hkv, S, D) -> (1, S, H, D)."""
    if spans is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _require_plain(kwargs, spans)
    spans.num_uses += 1
    is_causal = bool(getattr(module, "is_causal", True))
    run = _splits if dropout else _KERNELS[spans.kernel]
    return run(_Call(query, key, value, spans, is_causal, scaling, dropout)), None


AttentionInterface.register(SPANS, attend)
AttentionMaskInterface.register(SPANS, sdpa_mask)


def _require_plain(kwargs: dict[str, Any], spans: PackedRow) -> None:
    window = kwargs.get("sliding_window")
    if kwargs.get("softcap") is not None or (window is not None and window < max(spans.num_keys)):
        raise ConfigError(
            "packed rows with a sliding window or capped attention scores are not exact: set batching.layout=padded"
        )


def _splits(call: _Call) -> torch.Tensor:
    row = call.row
    # One split of the row: slices would each cost a row of zeros in the backward pass.
    queries = call.query.split(row.spans.lengths, dim=2)
    keys, values = (_keys_of_spans(rows, row) for rows in call.repeated())
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        is_continued = call.is_causal and k.shape[2] > q.shape[2]
        mask = row.continuation_mask(q.shape[2], k.shape[2]) if is_continued else None
        is_causal = call.is_causal and mask is None
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=call.dropout, is_causal=is_causal, scale=call.scaling
            ).transpose(1, 2)
        )
    return torch.cat(outputs, dim=1)


def _keys_of_spans(rows: torch.Tensor, row: PackedRow) -> list[torch.Tensor]:
    """Keys (or values) (1, H, S, D) of each span, its prefix before it. Split once, at every edge."""
    if not row.has_prefixes:
        return list(rows.split(row.spans.lengths, dim=2))
    ends = list(accumulate(row.spans.lengths))
    edges = sorted({0, *ends, *(edge for start, n in row.spans.prefixes for edge in (start, start + n) if n)})
    pieces = rows.split([stop - start for start, stop in pairwise(edges)], dim=2)
    place = {edge: number for number, edge in enumerate(edges)}
    found = []
    for end, length, (start, prefix) in zip(ends, row.spans.lengths, row.spans.prefixes, strict=True):
        parts = [*pieces[place[start] : place[start + prefix]]] if prefix else []
        parts += pieces[place[end - length] : place[end]]
        found.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
    return found


def _mask(call: _Call) -> torch.Tensor:
    mask = call.row.dense_mask.tril() if call.is_causal else call.row.dense_mask
    return scaled_dot_product_attention(
        call.query, *call.repeated(), mask, dropout_p=call.dropout, scale=call.scaling
    ).transpose(1, 2)


def _varlen(call: _Call) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - not in every torch

    row = call.row
    output: Any = varlen_attn(
        *call.flat(),
        row.query_offsets,
        row.key_offsets,
        max(row.spans.lengths),
        max(row.num_keys),
        scale=call.scaling,
        window_size=(-1, 0) if call.is_causal else (-1, -1),
        enable_gqa=call.query.shape[1] != call.key.shape[1],
    )
    rows: torch.Tensor = output[None]
    return rows


def _flash_attn(call: _Call) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func  # noqa: PLC0415 - optional package

    row = call.row
    output: torch.Tensor = flash_attn_varlen_func(
        *call.flat(),
        row.query_offsets,
        row.key_offsets,
        max(row.spans.lengths),
        max(row.num_keys),
        softmax_scale=call.scaling,
        causal=call.is_causal,
    )
    return output[None]


_FLASH_MODULES: Final = {
    AttentionKernel.flash_attn: "flash_attn",
    AttentionKernel.varlen: "torch.nn.attention.varlen",
}
"""The fastest first."""
_ROUNDING: Final = 0.05
"""Of outputs around 1 in 16 bits; a key too many or too few moves them by tenths."""
_KERNELS: Final[dict[AttentionKernel, Callable[[_Call], torch.Tensor]]] = {
    AttentionKernel.splits: _splits,
    AttentionKernel.mask: _mask,
    AttentionKernel.varlen: _varlen,
    AttentionKernel.flash_attn: _flash_attn,
}
