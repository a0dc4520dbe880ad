#!/usr/bin/env python
"""Clotho 2.1: a folder of 44.1 kHz wav files a split, clotho_captions_{split}.csv with five captions a file.

Makes clotho_{train,dev,test} out of development, validation and evaluation, five samples a clip with ``clip_id`` in
common. File names hold spaces, quotes and accents: they stand in ``clip_id``, and a hash of them in the key. Some
systems unpack the accents in another Unicode form, so names are compared in one form.

    python -m data_prep.clotho --input /corpora/clotho --output data
"""

from __future__ import annotations

import argparse
import csv
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from data_prep.held_out import key_of
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
SPLITS = {"train": "development", "dev": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def samples_of(table: Path, audio: Path) -> Iterator[SampleSpec]:
    """Five samples a row. Raises ConfigError where a column is missing."""
    files = {_one_form(path.name): path for path in sorted(audio.glob("*.wav"))}
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in ("file_name", *CAPTIONS) if name not in (rows.fieldnames or [])]:
            raise ConfigError(f"'{table}' has no column {', '.join(missing)}")
        for row in rows:
            name = row["file_name"]
            path = files.get(_one_form(name))
            for caption in CAPTIONS:
                metadata = {
                    "task": "caption",
                    "audio_language": "zxx",
                    "text_language": "en",
                    "text": row[caption].strip(),
                    "source": "clotho",
                    "clip_id": name,
                }
                problem = None if path else "captions without a recording"
                key = key_of(name.removesuffix(".wav"), caption[-1])
                yield SampleSpec(key, metadata, (str(path),), problem=problem)


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def prepare(args: argparse.Namespace) -> None:
    """Write one set a split."""
    for split in args.splits:
        released = SPLITS[split]
        table = args.input / f"clotho_captions_{released}.csv"
        if not table.is_file() or not (args.input / released).is_dir():
            raise ConfigError(
                f"'{args.input}' has no {table.name} with a folder {released}; expected the released tree"
            )
        options = SetOptions.from_arguments(
            args,
            name=f"clotho_{split}",
            split=split,
            license="Tampere University licence (non-commercial), clips CC by their owners",
            recipe={"corpus": "clotho", "revision": REVISION, "split": split},
        )
        write_dataset(samples_of(table, args.input / released), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder with the tables and a folder a split")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=tuple(SPLITS), help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
