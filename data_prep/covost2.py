#!/usr/bin/env python
"""CoVoST 2: covost_v2.{source}_{target}.tsv over the clips and validated.tsv of Common Voice version 4.

Makes one set per direction and split, for instance covost2_en_de_test; all 36 directions are known. As in the official
scripts, the train split is the rows tagged train and train_covost, quotation marks mean nothing and a backslash takes
the next character as it is. Rows whose clip validated.tsv does not know are listed as left out.

    python data_prep/covost2.py --input /corpora/cv-corpus-4 --translations /corpora/covost --output data --pairs en_de
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
FROM_ENGLISH = ("ar", "ca", "cy", "de", "et", "fa", "id", "ja", "lv", "mn", "sl", "sv-SE", "ta", "tr", "zh-CN")
TO_ENGLISH = (*FROM_ENGLISH, "es", "fr", "it", "nl", "pt", "ru")
PAIRS = tuple(f"en_{target}" for target in FROM_ENGLISH) + tuple(f"{source}_en" for source in TO_ENGLISH)
TAGS = {"train": ("train", "train_covost"), "dev": ("dev",), "test": ("test",)}


def find_table(pair: str, common_voice: Path, translations: Path | None) -> Path | None:
    """The released table of a direction: in the folder given, or in that of its source language."""
    source, name = pair.partition("_")[0], f"covost_v2.{pair}.tsv"
    folders = [common_voice / source] if translations is None else [translations, translations / source]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_sentences(folder: Path) -> dict[str, str]:
    """Clip -> what is said in it. Lines that are broken count as unknown clips."""
    rows = read_table(folder / "validated.tsv", escapes=True)
    return {row.fields["path"]: row.fields["sentence"] for row in rows if not row.problem}


def samples_of(table: Path, folder: Path, pair: str, split: str) -> Iterator[SampleSpec]:
    """Every row of a split; ``folder`` is that of the source language in Common Voice."""
    source, target = pair.split("_")
    sentences = read_sentences(folder)
    for row in read_table(table, escapes=True):
        if row.problem:
            yield SampleSpec(f"{pair}/line-{row.number}", {}, (), problem=row.problem)
            continue
        name = row.fields["path"]
        if row.fields["split"] not in TAGS[split]:
            continue
        path, problem = locate(folder / "clips", name)
        metadata = {
            "task": "translate",
            "audio_language": language_of(source),
            "text_language": language_of(target),
            "text": row.fields["translation"].strip(),
            "source": "covost2",
            "transcript": sentences.get(name, ""),
        }
        reason = None if name in sentences else "not in validated.tsv"
        key = f"{pair}/{name.removesuffix('.mp3')}"
        yield SampleSpec(key, metadata, (path,), skip_reason=reason, problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per direction and split."""
    tables = {pair: find_table(pair, args.input, args.translations) for pair in args.pairs or PAIRS}
    missing = [pair for pair, table in tables.items() if table is None]
    if (args.pairs and missing) or len(missing) == len(tables):
        raise ConfigError(
            f"no covost_v2.{missing[0]}.tsv in '{args.translations or args.input}'; fetch it from CoVoST 2"
        )
    for pair, table in tables.items():
        folder = args.input / pair.partition("_")[0]
        if table is None:
            continue
        if not (folder / "validated.tsv").is_file():
            raise ConfigError(f"'{folder}' has no validated.tsv; expected Common Voice version 4")
        for split in args.splits:
            name = f"covost2_{pair}_{split}"
            recipe = {"corpus": "covost2", "revision": REVISION, "pair": pair, "split": split}
            options = SetOptions.from_arguments(args, name=name, split=split, license="CC-BY-NC-4.0", recipe=recipe)
            write_dataset(samples_of(table, folder, pair, split), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of directions and splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "Common Voice version 4: the folder of the locales' folders")
    parser.add_argument("--translations", type=Path, help="folder of the CoVoST tables (default: in the locales')")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, metavar="SRC_TGT", help="default: all that are there")
    parser.add_argument("--splits", nargs="+", choices=TAGS, default=tuple(TAGS), help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
