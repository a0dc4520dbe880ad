"""Plans for tests, of lengths that no library version changes, and the digests of their order.

python -m tests.plans    # rewrites tests/golden/plan_order.json: only together with a higher PLAN_VERSION
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qwen_audio_train.plan.budget import LAYOUTS, Budget
from qwen_audio_train.plan.order import key, mixed
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan, Step
from qwen_audio_train.samples import Lengths

GOLDEN = Path(__file__).parent / "golden" / "plan_order.json"


def synthetic(num_samples: int, seed: int = 0) -> Lengths:
    """Speech-like lengths without a random-number library: seconds skewed to short, 5 % of the samples text only."""
    draws = [
        mixed(np.arange(num_samples, dtype=np.uint64) + np.uint64(key(seed, part))) >> np.uint64(40)
        for part in range(4)
    ]
    seconds, rate, extra, text_only = (draw.astype(np.int64) for draw in draws)
    frames = 25 + 1475 * (seconds >> 12) ** 2 // (1 << 24)
    text = 10 + extra % 30 + frames * (2 + rate % 4) // 50
    frames[text_only % 20 == 0] = 0
    tokens = (frames // 2 + text).astype(np.int32)
    return Lengths(tokens, text.astype(np.int32), frames.astype(np.int32))


def budget(layout: Any = "packed", *, window_samples: int = 400, **changed: Any) -> Budget:
    """Twelve bins a step."""
    shape = {"llm_tokens": 2000, "encoder_frames": 4000, "bins_per_step": 12, "layout": layout}
    return Budget(**{**shape, "window_samples": window_samples, **changed})


def sources(sizes: dict[str, int], weights: dict[str, Fraction] | None = None) -> list[Source]:
    """One source a name, each with lengths of its own."""
    return [
        Source(name, synthetic(size, key(len(name), ord(name[0]))), f"index of {name}", (weights or {}).get(name))
        for name, size in sizes.items()
    ]


def first_steps(plan: Plan, count: int) -> list[Step]:
    """The first steps that a run takes."""
    return list(islice(plan.steps_from(), count))


def drawn(steps: Iterable[Step]) -> Iterator[tuple[int, int, int]]:
    """(source, epoch of the source, sample) of each sample in order."""
    for step in steps:
        for members in step.bins:
            yield from zip(members.sources.tolist(), members.epochs.tolist(), members.samples.tolist(), strict=True)


def digest(steps: Iterable[Step]) -> str:
    """Of the order: step numbers, bins and what is in them."""
    of_all = hashlib.sha256()
    for step in steps:
        of_all.update(f"{step.index} {step.epoch} {step.window} {step.in_window}\n".encode())
        for members in step.bins:
            for array in (members.sources, members.epochs, members.samples):
                of_all.update(array.astype("<i8").tobytes() + b"|")
    return of_all.hexdigest()


def golden_digests() -> dict[str, str]:
    """Of a mixture by size, a weighted one, and one source, in each layout: two epochs and more."""
    mixtures: dict[str, list[Source]] = {
        "one": sources({"a": 3001}),
        "by size": sources({"a": 1501, "bc": 700}),
        "weighted": sources(
            {"a": 1501, "bc": 700, "d": 90}, {"a": Fraction(1, 2), "bc": Fraction(2), "d": Fraction(1)}
        ),
    }
    digests = {}
    for layout in LAYOUTS:
        for name, mixture in mixtures.items():
            plan = Plan(mixture, seed=11, budget=budget(layout, window_samples=600))
            digests[f"{layout} {name}"] = digest(first_steps(plan, plan.count_steps(2.5)))
            digests[f"{layout} {name} plan hash"] = plan.hash
    return digests


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_digests(), indent=1) + "\n", encoding="utf-8")
