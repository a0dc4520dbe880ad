#!/usr/bin/env python
"""FLEURS: data/{language}/{train,dev,test}.tsv with data/{language}/audio/{split}.tar.gz.

Makes one set per language and split, for instance fleurs_cmn_hans_cn_test. The tables have no header and seven columns;
a sentence id comes several times, once a speaker, so a sample's key is its file name. Audio is read straight from the
archive, or from a folder audio/{split} where it was unpacked.

    python data_prep/fleurs.py --input /corpora/fleurs --output data --languages cmn_hans_cn en_us --splits dev test
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.clip_sources import archive_files, read_media
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset
from qwen_audio_train.shards.released_text import Row, language_of, locate, read_table

REVISION = 1
SPLITS = ("train", "dev", "test")
COLUMNS = ("id", "file", "raw", "normalised", "characters", "num_samples", "gender")
SAMPLES_PER_SHARD = 200
"""Samples carry their bytes to the workers, so fewer at a time."""


def samples_of(folder: Path, split: str, text_column: str) -> Iterator[SampleSpec]:
    """In the order of the archive; then what the table names and the archive lacks."""
    rows: dict[str, Row] = {}
    for row in read_table(folder / f"{split}.tsv", COLUMNS):
        if row.problem or row.fields["file"] in rows:
            problem = row.problem or f"{row.fields['file']} is in the table twice"
            yield SampleSpec(f"{folder.name}/line-{row.number}", {}, (), problem=problem)
        else:
            rows[row.fields["file"]] = row
    if (folder / "audio" / split).is_dir():
        for name, row in rows.items():
            path, problem = locate(folder / "audio" / split, name)
            yield _spec(folder.name, row, (path,), text_column, problem)
        return
    found = set()
    for member, data in archive_files(folder / "audio" / f"{split}.tar.gz", lambda name: name.endswith(".wav")):
        name = PurePosixPath(member).name
        key = f"{folder.name}/{name.removesuffix('.wav')}"
        if name not in rows or name in found:
            reason = "in the archive twice" if name in found else "recording without a transcript"
            yield SampleSpec(key, {}, (), skip_reason=reason)
            continue
        found.add(name)
        yield _spec(folder.name, rows[name], ((data, "wav"),), text_column, None)
    for name in (name for name in rows if name not in found):
        yield _spec(folder.name, rows[name], (), text_column, "transcript without a recording")


def _spec(config: str, row: Row, clips: tuple[Any, ...], text_column: str, problem: str | None) -> SampleSpec:
    language = language_of(config)
    metadata = {
        "task": "transcribe",
        "audio_language": language,
        "text_language": language,
        "text": row.fields[text_column].strip(),
        "source": "fleurs",
        "sentence_id": row.fields["id"],
        "gender": row.fields["gender"].lower(),
    }
    return SampleSpec(f"{config}/{row.fields['file'].removesuffix('.wav')}", metadata, clips, problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per language and split."""
    root = args.input / "data" if (args.input / "data").is_dir() else args.input
    languages = args.languages or sorted(path.parent.name for path in root.glob("*/audio"))
    if not languages or any(not (root / language).is_dir() for language in languages):
        raise ConfigError(f"'{root}' lacks one of {languages or ['<language>/audio']}; expected the released tree")
    for language in languages:
        for split in args.splits:
            name = f"fleurs_{language}_{split}"
            options = SetOptions.from_arguments(
                args,
                name=name,
                split=split,
                license="CC-BY-4.0",
                recipe={"corpus": "fleurs", "revision": REVISION, "name": name, "text": args.text},
                samples_per_shard=SAMPLES_PER_SHARD,
            )
            write_dataset(samples_of(root / language, split, args.text), read_media, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of languages, splits and text."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the repository google/fleurs, or its folder data")
    parser.add_argument("--languages", nargs="+", help="for instance cmn_hans_cn en_us (default: all that are there)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="tables to take")
    parser.add_argument("--text", choices=("raw", "normalised"), default="raw", help="column of the target")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
