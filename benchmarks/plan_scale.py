"""What a plan costs and how well it fills: planning rate, padding, and the time to a first step by size and place.

    python benchmarks/plan_scale.py --json plan.json

Lengths are drawn like speech: seconds log-normal between 0.5 and 30 (mean about 8), 25 tokens a second and 15 to 120 of
text. The large sets are memory-mapped files in a temporary folder (0.8 GB for 10**8), removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from qwen_audio_train.plan.budget import LAYOUTS, Budget
from qwen_audio_train.plan.preview import describe
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.samples import IntArray, Lengths

WINDOW_SAMPLES = 32_768
BUDGET = Budget(4096, 12_000, 24, WINDOW_SAMPLES, layout="packed")
PLACES = (0.0, 0.5, 0.95)
_DRAWN = 1_000_000


def speech_lengths(count: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Tokens and encoder frames of ``count`` samples; beyond a million, the first million."""
    draw = np.random.default_rng(seed)
    seconds = draw.lognormal(1.85, 0.75, 2 * min(count, _DRAWN) + 100)
    seconds = seconds[(seconds >= 0.5) & (seconds <= 30)][: min(count, _DRAWN)]
    frames = np.ceil(seconds * 50).astype(np.int32)
    tokens = ((frames + 1) // 2 + draw.integers(15, 121, len(frames))).astype(np.int32)
    return tokens, frames


def planning(layout: str, num_samples: int = 20 * WINDOW_SAMPLES) -> dict[str, Any]:
    """Samples planned a second, from reading lengths to steps, and what an epoch's bins are filled with."""
    tokens, frames = speech_lengths(num_samples)
    source = Source("speech", Lengths(tokens, tokens, frames))
    plan = Plan([source], seed=0, budget=replace(BUDGET, layout=layout))
    started, started_cpu = time.perf_counter(), time.process_time()
    plan.count_steps(1)
    seconds, seconds_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    preview = describe(plan, 0)
    return {
        "samples_per_second": round(num_samples / seconds),
        "samples_per_cpu_second": round(num_samples / seconds_cpu),
        "steps": preview.steps,
        "unused_llm_tokens": round(preview.unused_token_share, 5),
        "llm_padding": round(preview.token_padding_share, 5),
        "encoder_padding": round(preview.frame_padding_share, 5),
        "rank_imbalance": round(preview.imbalance, 4),
    }


def first_steps(count: int, folder: Path) -> dict[str, float]:
    """Seconds from opening the mapped lengths of ``count`` samples to a first step, by place in the epoch."""
    parts = speech_lengths(count)
    for name, values in zip(("tokens", "frames"), parts, strict=True):
        written = open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.int32, shape=(count,))
        for start in range(0, count, len(values)):
            written[start : start + len(values)] = values[: min(len(values), count - start)]
        written.flush()
        del written
    seconds = {}
    for place in PLACES:
        started, started_cpu = time.perf_counter(), time.process_time()
        tokens, frames = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "frames"))
        plan = Plan([Source("speech", Lengths(tokens, tokens, frames))], seed=0, budget=BUDGET)
        window = int(place * plan.segments[0].epoch_windows)
        # A position keeps the step's number; any will do here.
        next(plan.steps_from(replace(plan.position_at(0), window=window, step=window)))
        seconds[f"{place:.0%}"] = round(time.perf_counter() - started, 4)
        seconds[f"{place:.0%} cpu"] = round(time.process_time() - started_cpu, 4)
    return seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="write the result there too")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**6, 10**8])
    given = arguments.parse_args()
    result: dict[str, Any] = {"planning": {layout: planning(layout) for layout in LAYOUTS}, "first_step_seconds": {}}
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            result["first_step_seconds"][str(size)] = first_steps(size, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
