"""Reading, measured: random reads with checksum against webdataset's sequential ones, decoding against soundfile alone,
and opening a set by its number of entries. Each function returns a dict of numbers for ``data_engine.py``.

    python benchmarks/data_engine_reads.py [--entries 10000 1000000]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
import webdataset.tariterators

from benchmarks.synthetic_index import write_real_set, write_synthetic_set
from qwen_audio_train.shards.reader import ShardSet

ROUNDS = 5


def _rate(count: int, action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return count / (time.perf_counter() - start)


def raw_reads(directory: Path, num_reads: int) -> dict[str, Any]:  # noqa: C901 - one small function a side
    """Clips a second of one process, bytes only, page cache warm, the sides in turn.

    Ours: random order over the set, by number, xxh3 of each clip compared. ``with_record``: the metadata too, parsed
    and checked, as a batch needs it. webdataset: the same tars front to back, its samples as they come, no checksum.
    """
    shards = ShardSet.open(directory)
    order = np.random.default_rng(0).permutation(len(shards))[:num_reads].tolist()
    records = [shards.record(i) for i in order]
    places = [(record.clips[0], record.origin) for record in records]
    tars = [str(directory / shard["file"]) for shard in shards.description["shards"]]

    def ours() -> None:
        for clip, origin in places:
            shards.read_clip_bytes(clip, origin)

    def with_record() -> None:
        for i in order:
            record = shards.record(i)
            shards.read_clip_bytes(record.clips[0], record.origin)

    def with_crc32() -> None:
        for clip, origin in places:
            zlib.crc32(shards._shard(shards._number_of(origin.shard)).read(clip.offset_bytes, clip.num_bytes))

    def with_sha256() -> None:
        for clip, origin in places:
            shards.read_clip_bytes(clip, origin, thorough=True)

    def sequential() -> None:
        webdataset.utils.enforce_security = False  # it refuses local paths otherwise
        for number, sample in enumerate(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)):
            assert sample["flac"]
            if number + 1 == num_reads:
                break

    sides = {
        "ours": ours, "with_record": with_record, "crc32": with_crc32, "sha256": with_sha256, "webdataset": sequential,
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            rates[name].append(_rate(num_reads, side))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "mean_clip_bytes": statistics.mean(clip.num_bytes for clip, _ in places),
        "raw_samples_per_second": {name: round(value, 1) for name, value in medians.items()},
        "raw_ratio": round(medians["ours"] / medians["webdataset"], 2),
        "raw_ratio_with_record": round(medians["with_record"] / medians["webdataset"], 2),
    }


def decoded_reads(directory: Path, num_reads: int) -> dict[str, Any]:
    """Clips a second through ``ShardSet.record`` and ``read_clip``, against soundfile alone on bytes in memory."""
    shards = ShardSet.open(directory)
    order = np.random.default_rng(1).permutation(len(shards))[:num_reads].tolist()
    encoded = []
    for i in order:
        record = shards.record(i)
        encoded.append(shards.read_clip_bytes(record.clips[0], record.origin))

    def ours() -> None:
        for i in order:
            record = shards.record(i)
            shards.read_clip(record.clips[0], record.origin)

    def alone() -> None:
        for data in encoded:
            soundfile.read(io.BytesIO(data), dtype="float32")

    rates: dict[str, list[float]] = {"ours": [], "soundfile": []}
    for _ in range(ROUNDS):
        rates["ours"].append(_rate(num_reads, ours))
        rates["soundfile"].append(_rate(num_reads, alone))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "decode_samples_per_second": {name: round(value, 1) for name, value in medians.items()},
        "decode_ratio": round(medians["ours"] / medians["soundfile"], 3),
    }


def opening(directory: Path) -> dict[str, Any]:
    """In a process of its own: seconds to open, and to the first sample read at 0, 50 and 95 %; private memory."""
    command = [sys.executable, "-m", "benchmarks.data_engine_reads", "--open", str(directory)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _open_here(directory: Path) -> dict[str, Any]:
    start = time.perf_counter()
    shards = ShardSet.open(directory)
    opened = time.perf_counter() - start
    firsts = {}
    for percent in (0, 50, 95):
        start = time.perf_counter()
        record = shards.record(len(shards) * percent // 100)
        shards.read_clip(record.clips[0], record.origin)
        firsts[str(percent)] = round(time.perf_counter() - start, 5)
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return {
        "entries": len(shards),
        "shards": len(shards.description["shards"]),
        "open_seconds": round(opened, 4),
        "first_sample_seconds": firsts,
        "private_mb": round(int(anonymous.split()[1]) / 1024, 1),
    }


def scaling(folder: Path, entries: list[int], samples_per_shard: int = 2000) -> list[dict[str, Any]]:
    """``opening`` of synthetic sets of so many entries, made and removed one after another under ``folder``."""
    real = write_real_set(folder / "small", num_shards=2, samples_per_shard=samples_per_shard, seconds=0.25)
    results = []
    for count in entries:
        start = time.perf_counter()
        directory = write_synthetic_set(real, folder / f"entries-{count}", count)
        built = time.perf_counter() - start
        rounds = [opening(directory) for _ in range(3)]
        best = min(rounds, key=lambda result: float(result["open_seconds"]))
        results.append({**best, "build_seconds": round(built, 1)})
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="*", default=[10_000, 1_000_000], help="sizes of synthetic sets")
    parser.add_argument("--clips", type=int, default=1000, help="clips of 10 s to read")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(_open_here(args.open)))
        return
    with tempfile.TemporaryDirectory(prefix="data-engine-", dir=os.environ.get("TMPDIR")) as folder:
        clips = write_real_set(Path(folder) / "clips", num_shards=4, samples_per_shard=args.clips // 4, seconds=10.0)
        results = {**raw_reads(clips, args.clips), **decoded_reads(clips, args.clips // 4)}
        results["scaling"] = scaling(Path(folder), args.entries)  # type: ignore[assignment]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
