#!/usr/bin/env python
"""Index tars that follow the shard contract (data_prep/README.md) and write their dataset.json.

python scripts/index_shards.py data/my_set data/another
python scripts/index_shards.py data/my_set --rebuild --name my_set

Stopped, it goes on where it was: a finished index that still matches its tar is kept. A tar that breaks the contract is
named with the reason, and its set gets no dataset.json until it is mended or removed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.index_set import index_set


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="folders of tars")
    parser.add_argument("--name", help="name of the set (default: the one it has, or the folder's); one folder only")
    parser.add_argument("--rebuild", action="store_true", help="scan every tar anew, also where an index matches")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    options = parser.parse_args(arguments)
    if options.workers < 0 or (options.name is not None and len(options.sets) > 1):
        parser.error("--workers counts from 0; --name goes with one folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    exit_code = 0
    for directory in options.sets:
        try:
            indexed = index_set(
                directory, name=options.name, workers=options.workers, rebuild=options.rebuild, show_progress=True
            )
        except ShardError as error:
            print(f"BAD  {error}")
            exit_code = 1
            continue
        for problem in indexed.problems:
            print(f"BAD  {problem}")
        counts = f"{indexed.num_built} indexes built, {indexed.num_kept} kept, {len(indexed.problems)} shards refused"
        if indexed.description is None:
            print(f"BAD  {directory}: {counts}; no dataset.json written")
            exit_code = 1
        else:
            hours = indexed.description["seconds"] / 3600
            print(f"good {directory}: {counts}; {indexed.description['num_samples']} samples, {hours:.2f} h")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
