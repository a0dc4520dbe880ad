#!/usr/bin/env python
"""Common Voice 15: cv-corpus-15.0-DATE/{locale}/clips/*.mp3 with train.tsv, dev.tsv, test.tsv beside them.

Makes one set per locale and split, for instance common_voice_15_zh-CN_test. Sentences are stored as released, with
their case and punctuation. Quotation marks in the tables are part of the sentences.

    python data_prep/common_voice.py --input /corpora/cv-corpus-15.0-2023-09-08 --output data --locales en zh-CN yue fr
"""

from __future__ import annotations

import argparse
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
from qwen_audio_train.shards.released_text import language_of, locate, read_table

REVISION = 1
SPLITS = ("train", "dev", "test")
SPEAKER_CHARACTERS = 16
"""Of a client id, which has 128; enough to tell speakers apart."""


def samples_of(folder: Path, split: str) -> Iterator[SampleSpec]:
    """Every row of a split's table."""
    language = language_of(folder.name)
    for row in read_table(folder / f"{split}.tsv"):
        if row.problem:
            yield SampleSpec(f"{folder.name}/line-{row.number}", {}, (), problem=row.problem)
            continue
        path, problem = locate(folder / "clips", row.fields["path"])
        metadata = {
            "task": "transcribe",
            "audio_language": language,
            "text_language": language,
            "text": row.fields["sentence"].strip(),
            "source": "common_voice_15",
            "speaker": row.fields["client_id"][:SPEAKER_CHARACTERS],
        }
        key = f"{folder.name}/{row.fields['path'].removesuffix('.mp3')}"
        yield SampleSpec(key, metadata, (path,), problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per locale and split."""
    locales = args.locales or sorted(path.parent.name for path in args.input.glob("*/clips"))
    missing = [locale for locale in locales if not (args.input / locale / "clips").is_dir()]
    if missing or not locales:
        raise ConfigError(
            f"'{args.input}' has no {missing[0] if missing else '<locale>'}/clips; expected the released tree"
        )
    for locale in locales:
        for split in args.splits:
            name = f"common_voice_15_{locale}_{split}"
            recipe = {"corpus": "common_voice", "revision": REVISION, "locale": locale, "split": split}
            options = SetOptions.from_arguments(args, name=name, split=split, license="CC0-1.0", recipe=recipe)
            write_dataset(samples_of(args.input / locale, split), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of locales and splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder cv-corpus-15.0-DATE")
    parser.add_argument("--locales", nargs="+", help="for instance en zh-CN yue fr (default: all that are there)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="tables to take")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
