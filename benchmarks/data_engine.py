"""The data engine beside what people use: reading, decoding, planning, and time by size and place in the epoch.

    python benchmarks/data_engine.py --json FILE

One process and one thread at a time, page cache warm, the sides of a comparison in turn. Makes about 8 GB under
--folder (a synthetic index of 10**8 entries) and removes them. lhotse is measured beside the plan if it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from benchmarks.data_engine_plan import WINDOW_SAMPLES, distinct_shards, lhotse_sampler, planning
from benchmarks.data_engine_reads import decoded_reads, raw_reads
from benchmarks.data_engine_scaling import SAMPLES_PER_SHARD, medians, scaling
from benchmarks.machine import machine
from benchmarks.synthetic_index import write_speech_set

PACKAGES = ("numpy", "soundfile", "webdataset", "xxhash")
BY_SIZE = ("open_seconds", "first_batch_seconds", "samples_per_second", "audio_seconds_per_second", "private_mb")
GOALS = {
    "raw_ratio": ">= 5",
    "raw_ratio_with_record": "",
    "raw_ratio_cpu": "",
    "decode_ratio": ">= 0.95",
    "decode_ratio_cpu": "",
    "plan_samples_per_second": ">= 300000",
    "llm_padding": "<= 0.01",
    "encoder_padding": "<= 0.03",
    "rank_imbalance": "<= 1.05",
}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it. The named results are medians; ``raw`` has every repetition behind them."""
    rounds = args.rounds or (2 if args.quick else 11)
    clips = 400 if args.quick else 2000
    sizes = args.entries or ([10_000, 100_000] if args.quick else [10**4, 10**6, 10**8])
    load_before = os.getloadavg()
    with tqdm(total=5 + len(sizes), unit="part") as bar:
        bar.set_description("clips")
        speech = write_speech_set(folder / "clips", num_shards=4, samples_per_shard=clips // 4)
        bar.set_description("raw reads")
        raw = {"raw_reads": raw_reads(speech, rounds)}
        bar.update()
        bar.set_description("decoding")
        raw["decoded_reads"] = decoded_reads(speech, rounds, clips // 4)
        if args.set is not None:
            raw["decoded_reads_of_given_set"] = decoded_reads(args.set, rounds, clips // 2)
        bar.update()
        bar.set_description("planning")
        raw["planning"] = planning((4 if args.quick else 20) * WINDOW_SAMPLES, min(rounds, 5))
        bar.update()
        bar.set_description("lhotse")
        raw["lhotse"] = lhotse_sampler(5_000 if args.quick else 60_000) or {"not installed": True}
        bar.update()
        bar.set_description("distinct shards")
        raw["distinct_shards"] = distinct_shards()
        bar.update()
        raw["scaling"] = scaling(folder, sizes, 1 if args.quick else 3, 50 if args.quick else 1000, bar)
    return {**_summary(raw), **machine(PACKAGES), "load_average": [load_before, os.getloadavg()], "raw": raw}


def _summary(raw: dict[str, Any]) -> dict[str, Any]:
    packed, by_size = raw["planning"]["packed"], raw["scaling"]
    given = raw.get("decoded_reads_of_given_set")
    return {
        "raw_ratio": raw["raw_reads"]["raw_ratio"],
        "raw_ratio_with_record": raw["raw_reads"]["raw_ratio_with_record"],
        "raw_ratio_cpu": raw["raw_reads"]["raw_ratio_cpu"],
        "decode_ratio": raw["decoded_reads"]["decode_ratio"],
        "decode_ratio_cpu": raw["decoded_reads"]["decode_ratio_cpu"],
        "decode_ratio_of_given_set": given and given["decode_ratio"],
        "plan_samples_per_second": statistics.median(packed["samples_per_second"]),
        "lhotse_samples_per_second": raw["lhotse"].get("samples_per_second"),
        "llm_padding": packed["llm_padding"],
        "encoder_padding": packed["encoder_padding"],
        "unused_llm_tokens": packed["unused_llm_tokens"],
        "rank_imbalance": packed["rank_imbalance"],
        "distinct_shards": raw["distinct_shards"],
        **{name: {size: medians(found[name]) for size, found in by_size.items()} for name in BY_SIZE},
    }


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'what':28} {'measured':>12}  goal"]
    lines += [f"{name:28} {result[name]:>12}  {goal}" for name, goal in GOALS.items()]
    for name in ("decode_ratio_of_given_set", "lhotse_samples_per_second", "unused_llm_tokens"):
        lines.append(f"{name:28} {result[name]!s:>12}")
    lines += [f"{name:28} {count:>12}  distinct shards of {512}" for name, count in result["distinct_shards"].items()]
    for size in result["first_batch_seconds"]:
        for name in BY_SIZE:
            places = "  ".join(f"{float(place):.0%}: {value:g}" for place, value in result[name][size].items())
            lines.append(f"{int(size):>11,} entries {name:24} {places}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: to see that it runs")
    parser.add_argument("--set", type=Path, help="a prepared set whose clips are decoded besides the synthetic ones")
    parser.add_argument("--rounds", type=int, help="repetitions of each side (default 11)")
    parser.add_argument(
        "--entries", type=int, nargs="+", help=f"sizes of synthetic sets, multiples of {SAMPLES_PER_SHARD}"
    )
    parser.add_argument("--folder", type=Path, help="where temporary files go (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-engine-", dir=args.folder) as folder:
        result = measure(args, Path(folder))
    print(_table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
