#!/usr/bin/env python
"""Rewrite sets into one set of another shard size, order, selection or encoding; the sources stay as they are.

python scripts/reshard.py data/my_set --output data/my_set_small --samples-per-shard 200
python scripts/reshard.py data/a data/b --output data/ab --shuffle-seed 1 --flac
python scripts/reshard.py data/my_set --output data/clean --drop runs/my_run/quarantine.jsonl --languages en de

Stopped, the same command goes on where it was; a shard has its name only once it is whole.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_audio_train.errors import QwenAudioTrainError
from qwen_audio_train.shards.reshard import Selection, reshard


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="folders of sets, of one split")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new set")
    parser.add_argument("--name", help="name of the new set (default: the folder's)")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--shuffle-seed", type=int, help="shuffle; equal seeds give equal orders")
    parser.add_argument("--flac", action="store_true", help="store what is not FLAC as 16 kHz FLAC")
    parser.add_argument("--tasks", nargs="+", default=(), help="only pretraining samples of these tasks")
    parser.add_argument("--languages", nargs="+", default=(), help="only pretraining samples of these audio languages")
    parser.add_argument("--keys", type=Path, help="only keys in this file, one a line")
    parser.add_argument("--drop", type=Path, nargs="+", default=(), help="leave out what these lists name (JSON lines)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    options = parser.parse_args(arguments)
    if options.workers < 0 or options.samples_per_shard < 1:
        parser.error("--workers counts from 0 and --samples-per-shard from 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        description = reshard(
            options.sources,
            options.output,
            options.name or options.output.absolute().name,
            samples_per_shard=options.samples_per_shard,
            selection=Selection(tuple(options.tasks), tuple(options.languages), options.keys, tuple(options.drop)),
            shuffle_seed=options.shuffle_seed,
            to_flac=options.flac,
            workers=options.workers,
        )
    except (QwenAudioTrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shards, skipped = len(description["shards"]), description["num_skipped"]
    print(f"{options.output}: {description['num_samples']} samples in {shards} shards, {skipped} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
