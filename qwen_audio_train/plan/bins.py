"""Samples of a window into bins under two budgets, tokens and encoder frames.

``packed``: sums must fit; best-fit decreasing, or, where a window is only a few steps, evenly over as many bins as
whole steps have. ``padded``: rows times the longest row must fit; neighbours in size share a bin. Every sample lands
in one bin, the budgets are never exceeded, and the bins come to whole steps.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from math import isqrt

import numpy as np

from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.order import Positions

_LEVEL_STEPS_UP_TO = 16
_LEVEL_TRIES = 8
_CLASSES = 4096


def pack(tokens: Positions, frames: Positions, budget: Budget) -> tuple[Positions, int]:
    """Bin number of each sample, shape (num_samples,), and how many bins: a whole number of steps.

    Where the bins do not fill the last step, all are made smaller alike (few steps), or some of the cheapest are spread
    over more (many steps). Bins are empty only if there are fewer samples than bins in a step.
    """
    if len(tokens) == 0:
        return np.zeros(0, np.int64), 0
    bin_of = _packed(tokens, frames, budget) if budget.layout == "packed" else _levelled_runs(tokens, frames, budget)
    return _whole_steps(bin_of, tokens, frames, budget)


def bin_sizes(
    bin_of: Positions, num_bins: int, tokens: Positions, frames: Positions, budget: Budget
) -> tuple[Positions, Positions]:
    """What each bin costs: (tokens, frames), padding included in the padded layout. Shape (num_bins,) each."""
    if budget.layout == "packed":
        return _sums(bin_of, tokens, num_bins), _sums(bin_of, frames, num_bins)
    rows = np.bincount(bin_of, minlength=num_bins)
    longest = np.zeros((2, num_bins), np.int64)
    np.maximum.at(longest[0], bin_of, tokens)
    np.maximum.at(longest[1], bin_of, frames)
    return rows * longest[0], rows * longest[1]


def bin_costs(bin_of: Positions, num_bins: int, tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    """Share of the token budget plus share of the frame budget, times both budgets: whole numbers, so that they compare
    alike on every machine. Shape (num_bins,)."""
    size_tokens, size_frames = bin_sizes(bin_of, num_bins, tokens, frames, budget)
    return size_tokens * budget.encoder_frames + size_frames * budget.llm_tokens


def best_fit(tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    """Largest share of a budget first, each into the bin with the least space left that surely takes it.

    A bin's space is the smaller of what is left of either budget, in classes of a 4096th or finer. Which classes have a
    bin are the bits of one integer, so the tightest is a shift away, however many bins there are.
    """
    most_tokens, most_frames = budget.llm_tokens, budget.encoder_frames
    shares = np.maximum(tokens * most_frames, frames * most_tokens)
    order = np.argsort(-shares, kind="stable")
    # Rounded up, a class is exact where there are as many as the budget has units; else what is left is rounded down.
    up_tokens, up_frames = (most - 1 if most <= _CLASSES else 0 for most in (most_tokens, most_frames))
    needed = np.maximum(-(-tokens * _CLASSES // most_tokens), -(-frames * _CLASSES // most_frames))
    by_class: list[list[int]] = [[] for _ in range(_CLASSES + 1)]
    classes = 0
    left_tokens: list[int] = []
    left_frames: list[int] = []
    chosen = []
    for at_least, size_tokens, size_frames in zip(
        needed[order].tolist(), tokens[order].tolist(), frames[order].tolist(), strict=True
    ):
        above = classes >> at_least
        if above:
            tightest = at_least + (above & -above).bit_length() - 1
            bins = by_class[tightest]
            into = bins.pop()
            if not bins:
                classes ^= 1 << tightest
            left_tokens[into] -= size_tokens
            left_frames[into] -= size_frames
        else:
            into = len(left_tokens)
            left_tokens.append(most_tokens - size_tokens)
            left_frames.append(most_frames - size_frames)
        space = min(
            (left_tokens[into] * _CLASSES + up_tokens) // most_tokens,
            (left_frames[into] * _CLASSES + up_frames) // most_frames,
        )
        by_class[space].append(into)
        classes |= 1 << space
        chosen.append(into)
    bin_of = np.empty(len(tokens), np.int64)
    bin_of[order] = chosen
    return bin_of


def spread_evenly(tokens: Positions, frames: Positions, num_bins: int, budget: Budget) -> Positions | None:
    """The dearest sample first, each into the cheapest bin so far; None if a sum then exceeds a budget."""
    costs = tokens * budget.encoder_frames + frames * budget.llm_tokens
    order = np.argsort(-costs, kind="stable")
    bins = [(0, number) for number in range(num_bins)]
    chosen = []
    for cost in costs[order].tolist():
        load, number = bins[0]
        heapq.heapreplace(bins, (load + cost, number))
        chosen.append(number)
    bin_of = np.empty(len(tokens), np.int64)
    bin_of[order] = chosen
    size_tokens, size_frames = _sums(bin_of, tokens, num_bins), _sums(bin_of, frames, num_bins)
    fits = size_tokens.max() <= budget.llm_tokens and size_frames.max() <= budget.encoder_frames
    return bin_of if fits else None


def runs(order: Positions, tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    """Neighbours of ``order``, from its end on, as many to a bin as fit with padding."""
    chosen = []
    number, rows, longest_tokens, longest_frames = -1, 0, 0, 0
    most_tokens, most_frames = budget.llm_tokens, budget.encoder_frames
    backwards = order[::-1]
    for size_tokens, size_frames in zip(tokens[backwards].tolist(), frames[backwards].tolist(), strict=True):
        rows += 1
        longest_tokens = max(longest_tokens, size_tokens)
        longest_frames = max(longest_frames, size_frames)
        if number < 0 or rows * longest_tokens > most_tokens or rows * longest_frames > most_frames:
            number, rows, longest_tokens, longest_frames = number + 1, 1, size_tokens, size_frames
        chosen.append(number)
    bin_of = np.empty(len(tokens), np.int64)
    bin_of[backwards] = chosen
    return bin_of


def by_size(tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    """Sample numbers such that neighbours are alike in frames and in tokens: bands of frames, each sorted by tokens, to
    and fro."""
    bins = max(int(tokens.sum()) // budget.llm_tokens, int(frames.sum()) // budget.encoder_frames)
    num_bands = max(1, isqrt(bins))
    by_frames = np.lexsort((tokens, frames))
    band = np.empty(len(tokens), dtype=np.int64)
    band[by_frames] = np.arange(len(tokens), dtype=np.int64) * num_bands // len(tokens)
    to_and_fro = np.where(band % 2 == 0, tokens, -tokens)
    return np.lexsort((frames, to_and_fro, band))


def _packed(tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    fewest = max(-(-int(tokens.sum()) // budget.llm_tokens), -(-int(frames.sum()) // budget.encoder_frames))
    wanted = _whole(fewest, budget.bins_per_step)
    if wanted <= _LEVEL_STEPS_UP_TO * budget.bins_per_step:
        even = spread_evenly(tokens, frames, wanted, budget)
        if even is not None:
            return even
    return best_fit(tokens, frames, budget)


def _levelled_runs(tokens: Positions, frames: Positions, budget: Budget) -> Positions:
    """As many bins as whole steps take, if making all bins smaller gives that; else a few less."""
    order = by_size(tokens, frames, budget)
    bin_of = runs(order, tokens, frames, budget)
    wanted = _whole(_count(bin_of), budget.bins_per_step)
    if wanted > _LEVEL_STEPS_UP_TO * budget.bins_per_step:
        return bin_of  # the light step is one of many
    low, high = 0.0, 1.0
    for _ in range(_LEVEL_TRIES):
        if _count(bin_of) == wanted:
            break
        share = (low + high) / 2
        smaller = replace(
            budget,
            llm_tokens=max(int(tokens.max()), int(budget.llm_tokens * share)),
            encoder_frames=max(int(frames.max()), 1, int(budget.encoder_frames * share)),
        )
        tried = runs(order, tokens, frames, smaller)
        if _count(tried) <= wanted:
            bin_of, high = tried, share
        else:
            low = share
    return bin_of


def _whole_steps(bin_of: Positions, tokens: Positions, frames: Positions, budget: Budget) -> tuple[Positions, int]:
    """Spread some of the cheapest bins over more, until the bins come to whole steps."""
    per_step, count = budget.bins_per_step, _count(bin_of)
    total = _whole(count, per_step)
    if total == count:
        return bin_of, total
    cheapest_first = np.argsort(bin_costs(bin_of, count, tokens, frames, budget), kind="stable")
    holds = np.bincount(bin_of, minlength=count)[cheapest_first]
    taken = count % per_step
    # Enough samples that no bin of the light steps is empty or has one sample only.
    while taken + per_step <= count and int(holds[:taken].sum()) < 2 * _whole(taken, per_step):
        taken += per_step
    is_taken = np.zeros(count, bool)
    is_taken[cheapest_first[:taken]] = True
    members = np.flatnonzero(is_taken[bin_of])
    renumbered = np.cumsum(~is_taken) - 1
    result = renumbered[bin_of]
    wanted = total - (count - taken)
    spread = None
    if budget.layout == "packed":
        spread = spread_evenly(tokens[members], frames[members], wanted, budget)
    if spread is None:
        spread = _split(bin_of[members], tokens[members], frames[members], wanted, budget)
    result[members] = count - taken + spread
    return result, total


def _split(bin_of: Positions, tokens: Positions, frames: Positions, wanted: int, budget: Budget) -> Positions:
    """Halve the dearest bin, again and again: a part of a bin fits wherever the whole fitted."""
    numbers, dense = np.unique(bin_of, return_inverse=True)
    order = by_size(tokens, frames, budget)
    members = [order[dense[order] == number] for number in range(len(numbers))]
    pool = [(-_cost(part, tokens, frames, budget), number) for number, part in enumerate(members)]
    heapq.heapify(pool)
    while pool and len(members) < wanted:
        _, number = heapq.heappop(pool)
        part = members[number]
        if len(part) == 1:
            continue
        halves = (part[: len(part) // 2], part[len(part) // 2 :])
        if budget.layout == "packed":
            halves = (part[::2], part[1::2])
        members[number] = halves[0]
        members.append(halves[1])
        for half, its_number in zip(halves, (number, len(members) - 1), strict=True):
            heapq.heappush(pool, (-_cost(half, tokens, frames, budget), its_number))
    result = np.empty(len(tokens), np.int64)
    for number, part in enumerate(members):
        result[part] = number
    return result


def _cost(part: Positions, tokens: Positions, frames: Positions, budget: Budget) -> int:
    return int(bin_costs(np.zeros(len(part), np.int64), 1, tokens[part], frames[part], budget)[0])


def _count(bin_of: Positions) -> int:
    return int(bin_of.max()) + 1


def _sums(bin_of: Positions, sizes: Positions, num_bins: int) -> Positions:
    # Exact: sums of lengths are far below 2**53.
    return np.bincount(bin_of, weights=sizes, minlength=num_bins).astype(np.int64)


def _whole(count: int, per_step: int) -> int:
    return per_step * -(-count // per_step)
