"""Slots into bins under two budgets, tokens and encoder frames. Runs once a plan, not once an epoch (strata.py).

``padded``: neighbours in size share a bin, and rows times the longest row must fit. ``packed``: best-fit decreasing,
and sums must fit. Both are exact: every slot lands in one bin.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from math import ceil

import numpy as np

from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.order import Positions

Bins = list[list[int]]
_COMPACT_EVERY = 256
_LEVEL_STEPS_UP_TO = 16
_LEVEL_TRIES = 8


def pack(tokens: Positions, frames: Positions, budget: Budget) -> tuple[Positions, int]:
    """Bin number of each sample, shape (num_samples,), and how many bins: a whole number of steps."""
    order = np.argsort(tokens, kind="stable")
    if len(order) == 0:
        return order, 0
    bin_of = np.empty(len(tokens), np.int64)
    bins = build_bins(tokens[order], frames[order], budget)
    for number, slots in enumerate(bins):
        bin_of[order[slots]] = number
    return bin_of, len(bins)


def build_bins(tokens: Positions, frames: Positions, budget: Budget, ragged_slot: int | None = None) -> Bins:
    """Bins of slot numbers, as many as a whole number of steps takes.

    Where the bins do not fill the last step, they are made smaller alike (few steps) or the cheapest are split until
    they do (many steps), so all steps have ``budget.bins_per_step`` bins. Bins are empty only if there are fewer slots
    than bins in a step. ``ragged_slot`` is one that some windows have no sample for: it is not left alone in a bin.
    """
    bins = _filled_up(_levelled(tokens, frames, budget), tokens, frames, budget)
    if ragged_slot is not None and [ragged_slot] in bins:
        _accompany(bins, bins.index([ragged_slot]), tokens, frames, budget)
    return bins


def padded_bins(tokens: Positions, frames: Positions, budget: Budget) -> Bins:
    """Runs of neighbouring slots, from the last (the largest) on."""
    token_list, frame_list = tokens.tolist(), frames.tolist()
    bins: Bins = []
    longest_tokens = longest_frames = 0
    for slot in range(len(token_list) - 1, -1, -1):
        longest_tokens = max(longest_tokens, token_list[slot])
        longest_frames = max(longest_frames, frame_list[slot])
        rows = len(bins[-1]) + 1 if bins else 0
        if bins and rows * longest_tokens <= budget.llm_tokens and rows * longest_frames <= budget.encoder_frames:
            bins[-1].append(slot)
        else:
            bins.append([slot])
            longest_tokens, longest_frames = token_list[slot], frame_list[slot]
    return bins


def packed_bins(tokens: Positions, frames: Positions, budget: Budget) -> Bins:
    """Largest share of a budget first, each into the fullest bin that still takes it."""
    token_share, frame_share = tokens / budget.llm_tokens, frames / budget.encoder_frames
    largest_first = np.argsort(-np.maximum(token_share, frame_share), kind="stable").tolist()
    token_list, frame_list = tokens.tolist(), frames.tolist()
    least_tokens, least_frames = int(tokens.min()), int(frames.min())
    bins: Bins = []
    bin_of = np.empty(len(tokens), dtype=np.int64)
    free_tokens, free_frames = np.empty_like(bin_of), np.empty_like(bin_of)
    num_open = 0
    for done, slot in enumerate(largest_first):
        if done % _COMPACT_EVERY == 0:
            # A bin that cannot take the smallest sample is never looked at again.
            kept = np.flatnonzero((free_tokens[:num_open] >= least_tokens) & (free_frames[:num_open] >= least_frames))
            num_open = len(kept)
            for array in (bin_of, free_tokens, free_frames):
                array[:num_open] = array[kept]
        left_tokens = free_tokens[:num_open] - token_list[slot]
        left_frames = free_frames[:num_open] - frame_list[slot]
        fits = np.flatnonzero((left_tokens >= 0) & (left_frames >= 0))
        if len(fits):
            slack = left_tokens[fits] * budget.encoder_frames + left_frames[fits] * budget.llm_tokens
            into = int(fits[np.argmin(slack)])
            bins[bin_of[into]].append(slot)
        else:
            into, num_open = num_open, num_open + 1
            bin_of[into], free_tokens[into], free_frames[into] = len(bins), budget.llm_tokens, budget.encoder_frames
            bins.append([slot])
        free_tokens[into] -= token_list[slot]
        free_frames[into] -= frame_list[slot]
    return bins


def bin_size(tokens: Positions, frames: Positions, budget: Budget) -> tuple[int, int]:
    """What a bin of these samples costs: (tokens, frames), padding included in the padded layout."""
    if len(tokens) == 0:
        return 0, 0
    if budget.layout == "padded":
        return len(tokens) * int(tokens.max()), len(tokens) * int(frames.max())
    return int(tokens.sum()), int(frames.sum())


def bin_cost(slots: list[int], tokens: Positions, frames: Positions, budget: Budget) -> float:
    """Share of the token budget plus share of the frame budget, 0 to 2."""
    size_tokens, size_frames = bin_size(tokens[slots], frames[slots], budget)
    return size_tokens / budget.llm_tokens + size_frames / budget.encoder_frames


def _levelled(tokens: Positions, frames: Positions, budget: Budget) -> Bins:
    """As many bins as whole steps take, if making all bins smaller gives that; else a few less."""
    pack = padded_bins if budget.layout == "padded" else packed_bins
    bins = pack(tokens, frames, budget)
    wanted = _whole(len(bins), budget.bins_per_step)
    if wanted > _LEVEL_STEPS_UP_TO * budget.bins_per_step:
        return bins  # the light step is one of many
    low, high = 0.0, 1.0
    for _ in range(_LEVEL_TRIES):
        share = (low + high) / 2
        smaller = replace(
            budget,
            llm_tokens=max(int(tokens.max()), int(budget.llm_tokens * share)),
            encoder_frames=max(int(frames.max()), 1, int(budget.encoder_frames * share)),
        )
        tried = pack(tokens, frames, smaller)
        if len(tried) <= wanted:
            bins, high = tried, share
        else:
            low = share
        if len(tried) == wanted:
            break
    return bins


def _accompany(bins: Bins, alone: int, tokens: Positions, frames: Positions, budget: Budget) -> None:
    """Move one slot of the cheapest bin that can spare it into bin ``alone``, where it fits."""
    givers = [index for index, slots in enumerate(bins) if len(slots) > 1]
    for giver in sorted(givers, key=lambda index: bin_cost(bins[index], tokens, frames, budget)):
        joined = [*bins[alone], bins[giver][-1]]
        size_tokens, size_frames = bin_size(tokens[joined], frames[joined], budget)
        if size_tokens <= budget.llm_tokens and size_frames <= budget.encoder_frames:
            bins[alone] = joined
            bins[giver].pop()
            return


def _filled_up(bins: Bins, tokens: Positions, frames: Positions, budget: Budget) -> Bins:
    per_step = budget.bins_per_step
    if len(bins) % per_step == 0:
        return bins
    costs = [bin_cost(slots, tokens, frames, budget) for slots in bins]
    cheapest_first = sorted(range(len(bins)), key=lambda index: (costs[index], index))
    taken = len(bins) % per_step
    while taken + per_step <= len(bins) and sum(len(bins[i]) for i in cheapest_first[:taken]) < 2 * _whole(
        taken, per_step
    ):
        taken += per_step
    pool = [(-costs[index], order, bins[index]) for order, index in enumerate(cheapest_first[:taken])]
    heapq.heapify(pool)
    whole: Bins = []
    order = len(pool)
    while pool and len(pool) + len(whole) < _whole(taken, per_step):
        _, _, slots = heapq.heappop(pool)
        if len(slots) == 1:
            whole.append(slots)
            continue
        half = len(slots) // 2
        parts = (slots[:half], slots[half:]) if budget.layout == "padded" else (slots[::2], slots[1::2])
        for part in parts:
            heapq.heappush(pool, (-bin_cost(part, tokens, frames, budget), order, part))
            order += 1
    split = whole + [slots for _, _, slots in sorted(pool)]
    split += [[] for _ in range(_whole(taken, per_step) - len(split))]
    return [bins[index] for index in sorted(cheapest_first[taken:])] + split


def _whole(count: int, per_step: int) -> int:
    return per_step * ceil(count / per_step)
