"""Planning, measured: rate, padding and imbalance beside lhotse's sampler; distinct shards beside a shuffle buffer."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.synthetic_index import speech_seconds
from qwen_audio_train.plan.budget import LAYOUTS, Budget
from qwen_audio_train.plan.preview import describe
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.samples import IntArray, Lengths

WINDOW_SAMPLES = 32_768
BUDGET = Budget(4096, 12_000, 24, WINDOW_SAMPLES, layout="packed")
NUM_SHARDS = 500
SHARD_SAMPLES = 2000
BATCH_SAMPLES = 512
LHOTSE_BUCKETS = 30
ENCODER_HZ = 50


def tokens_of(seconds: npt.NDArray[np.floating]) -> tuple[IntArray, IntArray]:
    """Language-model tokens (25 a second and 15 to 120 of text) and encoder frames (50), shape (count,)."""
    frames = np.ceil(seconds * ENCODER_HZ).astype(np.int32)
    text = np.random.default_rng(0).integers(15, 121, len(frames))
    return ((frames + 1) // 2 + text).astype(np.int32), frames


def planning(num_samples: int, rounds: int) -> dict[str, Any]:
    """Samples planned a second on one thread, from reading lengths to steps, and what an epoch's bins hold; each layout
    in turn."""
    tokens, frames = tokens_of(speech_seconds(num_samples))
    result: dict[str, Any] = {layout: {"samples_per_second": []} for layout in LAYOUTS}
    for _, layout in itertools.product(range(rounds), LAYOUTS):
        plan = Plan([Source("speech", Lengths(tokens, tokens, frames))], seed=0, budget=replace(BUDGET, layout=layout))
        started = time.perf_counter()
        plan.count_steps(1)
        result[layout]["samples_per_second"].append(round(len(tokens) / (time.perf_counter() - started)))
    for layout in LAYOUTS:
        plan = Plan([Source("speech", Lengths(tokens, tokens, frames))], seed=0, budget=replace(BUDGET, layout=layout))
        preview = describe(plan, 0)
        result[layout] |= {
            "steps": preview.steps,
            "llm_padding": round(preview.token_padding_share, 5),
            "encoder_padding": round(preview.frame_padding_share, 5),
            "unused_llm_tokens": round(preview.unused_token_share, 5),
            "unused_encoder_frames": round(preview.unused_frame_share, 5),
            "rank_imbalance": round(preview.imbalance, 4),
        }
    return result


def lhotse_sampler(num_samples: int) -> dict[str, Any] | None:
    """Cuts a second of lhotse's DynamicBucketingSampler over the same lengths, as much audio a batch; None where lhotse
    is not installed. Its padding is what is added to every batch's cuts up to its longest."""
    try:
        import lhotse  # noqa: PLC0415
        from lhotse.dataset import DynamicBucketingSampler  # noqa: PLC0415
    except ImportError:
        return None
    cuts = lhotse.CutSet.from_cuts(_cut(lhotse, n, s) for n, s in enumerate(speech_seconds(num_samples))).to_eager()
    options = {"shuffle": True, "num_buckets": LHOTSE_BUCKETS, "world_size": 1, "rank": 0}
    sampler = DynamicBucketingSampler(cuts, max_duration=BUDGET.encoder_frames / 50, **options)
    started = time.perf_counter()
    batches = [[cut.duration for cut in batch] for batch in sampler]
    seconds = time.perf_counter() - started
    computed = sum(len(batch) * max(batch) for batch in batches)
    return {
        "version": lhotse.__version__,
        "samples_per_second": round(sum(map(len, batches)) / seconds),
        "samples": num_samples,
        "encoder_padding": round(1 - sum(map(sum, batches)) / computed, 5),
    }


def _cut(lhotse: Any, number: int, seconds: float) -> Any:
    num_samples = int(seconds * 16_000)
    duration = num_samples / 16_000
    recording = lhotse.Recording(f"rec-{number}", [], 16_000, num_samples, duration)
    return lhotse.MonoCut(id=f"cut-{number}", start=0.0, duration=duration, channel=0, recording=recording)


def distinct_shards(num_batches: int = 40) -> dict[str, float]:
    """Mean number of distinct shards in 512 samples of 500 shards of 2000: of the plan, and of webdataset's shuffled
    shards behind its shuffle buffer, one stream."""
    import webdataset.filters  # noqa: PLC0415 - it brings torch, which the processes that time opening do not need

    total = NUM_SHARDS * SHARD_SAMPLES
    tokens, frames = tokens_of(speech_seconds(total))
    plan = Plan([Source("speech", Lengths(tokens, tokens, frames))], seed=0, budget=BUDGET)
    drawn = itertools.chain.from_iterable(
        (planned_bin.samples // SHARD_SAMPLES).tolist() for step in plan.steps_from() for planned_bin in step.bins
    )
    found = {f"plan, window {WINDOW_SAMPLES}": _mean_distinct(drawn, num_batches)}
    order = random.Random(0).sample(range(NUM_SHARDS), NUM_SHARDS)
    for buffer in (1000, 10_000):
        stream = (shard for shard in order for _ in range(SHARD_SAMPLES))
        shuffled = webdataset.filters._shuffle(stream, bufsize=buffer, initial=buffer, rng=random.Random(0))
        found[f"webdataset, buffer {buffer}"] = _mean_distinct(shuffled, num_batches)
    return found


def _mean_distinct(shards: Any, num_batches: int) -> float:
    counts = [len(set(itertools.islice(shards, BATCH_SAMPLES))) for _ in range(num_batches)]
    return round(statistics.mean(counts), 1)
