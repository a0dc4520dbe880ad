"""Opening, first batch and steady reading by the number of entries and the place in the epoch, each in a fresh process.

Run with a folder and a place, it measures that one and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm

from benchmarks.data_engine_plan import BUDGET, ENCODER_HZ, tokens_of
from benchmarks.synthetic_index import write_speech_set, write_synthetic_set
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.samples import Lengths
from qwen_audio_train.shards.reader import ShardSet

PLACES = (0.0, 0.5, 0.95)
SAMPLES_PER_SHARD = 2000


def scaling(folder: Path, sizes: list[int], rounds: int, num_steady: int, bar: tqdm[Any]) -> dict[str, Any]:
    """Synthetic sets of so many entries, made under ``folder`` and removed one after another. Seconds are lists, one
    entry a process."""
    real = write_speech_set(folder / "one", num_shards=1, samples_per_shard=SAMPLES_PER_SHARD)
    results: dict[str, Any] = {}
    for size in sizes:
        bar.set_description(f"{size:.0e} entries: building")
        started = time.perf_counter()
        directory = write_synthetic_set(real, folder / f"entries-{size}", size)
        _write_lengths(ShardSet.open(real), directory, size)
        runs: dict[str, list[dict[str, Any]]] = {str(place): [] for place in PLACES}
        built = time.perf_counter() - started
        for number in range(rounds + 1):
            for place in PLACES:
                bar.set_description(f"{size:.0e} entries: {place:.0%}")
                found = _in_fresh_process(directory, place, num_steady)
                if number:  # the first round only fills the page cache
                    runs[str(place)].append(found)
        results[str(size)] = {"build_seconds": round(built, 1), **_columns(runs)}
        shutil.rmtree(directory)
        bar.update()
    return results


def _columns(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    names = next(iter(runs.values()))[0]
    return {name: {place: [run[name] for run in found] for place, found in runs.items()} for name in names}


def medians(column: dict[str, list[float]]) -> dict[str, float]:
    """Of each place."""
    return {place: round(statistics.median(values), 4) for place, values in column.items()}


def _write_lengths(one: ShardSet, directory: Path, size: int) -> None:
    """The lengths of the set's samples as measuring keeps them: tokens and encoder frames."""
    tokens, frames = tokens_of(one.clip_lengths()[1] / 16_000)
    for name, values in (("tokens", tokens), ("frames", frames)):
        written = open_memmap(directory / f"{name}.npy", mode="w+", dtype=np.int32, shape=(size,))
        written.reshape(-1, len(values))[:] = values
        written.flush()


def _in_fresh_process(directory: Path, place: float, num_steady: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data_engine_scaling", str(directory), str(place), str(num_steady)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _measure(directory: Path, place: float, num_steady: int) -> dict[str, Any]:
    started = time.perf_counter()
    shards = ShardSet.open(directory)
    opened = time.perf_counter()
    tokens, frames = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("tokens", "frames"))
    plan = Plan([Source("speech", Lengths(tokens, tokens, frames))], seed=0, budget=BUDGET)
    window = int(place * plan.segments[0].epoch_windows)
    # A position keeps the step's number; any will do here.
    steps = plan.steps_from(replace(plan.position_at(0), window=window, step=window))
    step = next(steps)
    planned = time.perf_counter()
    first = _read(shards, step.bins[0].samples.tolist())
    ready = time.perf_counter()
    numbers = [number for planned_bin in step.bins for number in planned_bin.samples.tolist()]
    while len(numbers) < num_steady:
        numbers += [number for planned_bin in next(steps).bins for number in planned_bin.samples.tolist()]
    audio_seconds = float(frames[numbers[:num_steady]].sum()) / ENCODER_HZ
    steady = time.perf_counter()
    _read(shards, numbers[:num_steady])
    seconds = time.perf_counter() - steady
    return {
        "open_seconds": round(opened - started, 4),
        "first_batch_seconds": round(ready - opened, 4),
        "first_plan_seconds": round(planned - opened, 4),
        "first_batch_samples": first,
        "samples_per_second": round(num_steady / seconds, 1),
        # The bins of a step hold clips of like length: samples of different steps are not alike.
        "audio_seconds_per_second": round(audio_seconds / seconds, 1),
        "private_mb": _private_mb(),
    }


def _read(shards: ShardSet, numbers: list[int]) -> int:
    for number in numbers:
        record = shards.record(number)
        shards.read_clip(record.clips[0], record.origin)
    return len(numbers)


def _private_mb() -> float:
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return round(int(anonymous.split()[1]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("place", type=float)
    parser.add_argument("num_steady", type=int)
    args = parser.parse_args()
    print(json.dumps(_measure(args.directory, args.place, args.num_steady)))


if __name__ == "__main__":
    main()
