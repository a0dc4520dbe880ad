#!/usr/bin/env python
"""Verify prepared sets: every shard's sha256 and structure, every clip's checksum, length and decodability."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.check import check_shards
from qwen_audio_train.shards.dataset import describe_set, read_description
from qwen_audio_train.shards.reader import ShardSet

MAX_LISTED = 50


def reindex(directory: Path) -> None:
    """Scan all tars anew; keeps the name and the recipe of an existing description."""
    name, recipe = directory.name, None
    try:
        old = read_description(directory / "dataset.json")
        name, recipe = old["name"], old.get("recipe")
    except ShardError:
        pass  # tars of another origin have no description yet
    describe_set(directory, name, recipe=recipe, reindex=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path, help="folders that hold shards and their dataset.json")
    parser.add_argument(
        "--reindex",
        action="store_true",
        help="first rebuild indexes and dataset.json from the tars (also for tars that "
        "were written by other tools after the same contract)",
    )
    args = parser.parse_args()
    exit_code = 0
    for directory in args.sets:
        try:
            if args.reindex:
                reindex(directory)
            shards = ShardSet.open(directory)
            problems = check_shards(shards, show_progress=True)
        except ShardError as error:
            problems = [str(error)]
        for problem in problems[:MAX_LISTED]:
            print(f"BAD  {problem}")
        if problems:
            print(f"BAD  {directory}: {len(problems)} problems")
            exit_code = 1
        else:
            seconds = shards.description["seconds"]
            print(f"good {directory}: {len(shards)} samples, {seconds / 3600:.2f} h, fingerprint {shards.fingerprint}")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
