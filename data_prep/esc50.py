#!/usr/bin/env python
"""ESC-50: audio/{fold}-{source}-{take}-{target}.wav, 5 s at 44.1 kHz, with meta/esc50.csv.

Makes esc50_fold{1..5}, a set a fold: clips of one source recording are in one fold, and results are the mean over five
runs that leave one fold out, so train on four sets and test on the fifth.

    python data_prep/esc50.py --input /corpora/ESC-50-master --output data
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.prepare import (
    SampleSpec,
    SetOptions,
    corpus_arguments,
    read_audio_file,
    run_corpus,
    write_dataset,
)

REVISION = 1
FOLDS = range(1, 6)


def samples_of(root: Path, fold: int) -> Iterator[SampleSpec]:
    """Every clip of a fold; one whose name contradicts the table is a problem."""
    with (root / "meta" / "esc50.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["fold"]) != fold:
                continue
            stem = row["filename"].removesuffix(".wav")
            path = root / "audio" / f"{stem}.wav"
            named = f"{row['fold']}-{row['src_file']}-{row['take']}-{row['target']}"
            problem = None if stem == named else f"the table says {named} of a file named {stem}"
            metadata = {
                "task": "sound",
                "audio_language": "zxx",
                "text_language": "en",
                "text": row["category"].replace("_", " "),
                "source": "esc50",
                "target": int(row["target"]),
                "esc10": row["esc10"] == "True",
            }
            problem = problem or (None if path.is_file() else "row without a recording")
            yield SampleSpec(stem, metadata, (str(path),), problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set a fold."""
    if not (args.input / "meta" / "esc50.csv").is_file():
        raise ConfigError(f"'{args.input}' has no meta/esc50.csv; expected the released tree")
    for fold in args.folds:
        options = SetOptions.from_arguments(
            args,
            name=f"esc50_fold{fold}",
            split="test" if fold == args.test_fold else "train",
            license="CC-BY-NC-3.0",
            recipe={"corpus": "esc50", "revision": REVISION, "fold": fold},
        )
        write_dataset(samples_of(args.input, fold), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of folds."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds audio and meta")
    parser.add_argument("--folds", nargs="+", type=int, choices=FOLDS, default=FOLDS, help="to prepare")
    parser.add_argument("--test-fold", type=int, choices=FOLDS, default=5, help="the one marked as test")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
