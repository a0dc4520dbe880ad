"""Reading, measured: random reads with checksum beside webdataset in order, decoding beside soundfile alone."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset

from qwen_audio_train.shards.reader import ShardSet

Rates = dict[str, dict[str, list[float]]]


def interleaved(sides: dict[str, Callable[[], Any]], count: int, rounds: int) -> Rates:
    """Rates (``count`` a second) of each side, by the clock and by the processor time that it used; the sides in turn,
    in another order every other round."""
    rates: Rates = {name: {"wall": [], "cpu": []} for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            started, started_cpu = time.perf_counter(), time.process_time()
            sides[name]()
            rates[name]["cpu"].append(round(count / (time.process_time() - started_cpu), 2))
            rates[name]["wall"].append(round(count / (time.perf_counter() - started), 2))
    return rates


def median_ratio(rates: Rates, ours: str, theirs: str, clock: str = "wall") -> float:
    """Ratio of medians."""
    return round(statistics.median(rates[ours][clock]) / statistics.median(rates[theirs][clock]), 3)


def raw_reads(directory: Path, rounds: int) -> dict[str, Any]:
    """Encoded clips a second of one process, all of the set, page cache warm.

    Ours: random order, by number, xxh3 of each clip compared; the record was looked up before. ``with_record``: its
    metadata read, parsed and checked too, as a batch needs it. webdataset: the same tars front to back, its samples
    (a dictionary of bytes, nothing parsed) as they come, no checksum.
    """
    shards = ShardSet.open(directory)
    order = np.random.default_rng(0).permutation(len(shards)).tolist()
    places = [(record.clips[0], record.origin) for record in map(shards.record, order)]
    tars = [str(directory / shard["file"]) for shard in shards.description["shards"]]
    webdataset.utils.enforce_security = False  # it refuses local paths otherwise

    def ours() -> None:
        for clip, origin in places:
            shards.read_clip_bytes(clip, origin)

    def with_record() -> None:
        for i in order:
            record = shards.record(i)
            shards.read_clip_bytes(record.clips[0], record.origin)

    def sequential() -> None:
        found = sum("flac" in sample for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        assert found == len(shards)

    sides = {"ours": ours, "with_record": with_record, "webdataset": sequential}
    rates = interleaved(sides, len(order), rounds)
    return {
        "raw_ratio": median_ratio(rates, "ours", "webdataset"),
        "raw_ratio_with_record": median_ratio(rates, "with_record", "webdataset"),
        "raw_ratio_cpu": median_ratio(rates, "ours", "webdataset", "cpu"),
        "mean_clip_bytes": round(statistics.mean(clip.num_bytes for clip, _ in places)),
        "samples_per_second": rates,
    }


def decoded_reads(directory: Path, rounds: int, num_reads: int) -> dict[str, Any]:
    """Clips a second by number (metadata, read, checksum, float32 at 16 kHz), beside soundfile alone on the same bytes
    in memory."""
    shards = ShardSet.open(directory)
    order = np.random.default_rng(1).permutation(len(shards))[:num_reads].tolist()
    records = [shards.record(i) for i in order]
    encoded = [shards.read_clip_bytes(record.clips[0], record.origin) for record in records]

    def ours() -> None:
        for i in order:
            record = shards.record(i)
            shards.read_clip(record.clips[0], record.origin)

    def alone() -> None:
        for data in encoded:
            soundfile.read(io.BytesIO(data), dtype="float32")

    rates = interleaved({"ours": ours, "soundfile": alone}, len(order), rounds)
    return {
        "decode_ratio": median_ratio(rates, "ours", "soundfile"),
        "decode_ratio_cpu": median_ratio(rates, "ours", "soundfile", "cpu"),
        "mean_seconds": round(statistics.mean(record.clips[0].num_samples for record in records) / 16_000, 2),
        "samples_per_second": rates,
    }
