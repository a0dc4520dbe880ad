#!/usr/bin/env python
"""AISHELL-2: iOS/data/{wav,wav.scp,trans.txt} to train on, {iOS,Android,Mic}/{dev,test}/{wav,trans.txt} to evaluate on.

Makes aishell2_train and aishell2_{ios,android,mic}_{dev,test}. Full-width letters and digits become ASCII, and English
words, which come in any case, become lower case. The corpus is given on application only.

    python data_prep/aishell2.py --input /corpora/AISHELL-2 --output data --sets train ios_test
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
from qwen_audio_train.shards.released_text import half_width, locate, read_table

REVISION = 1
FOLDERS = {"train": "iOS/data"} | {
    f"{channel.lower()}_{split}": f"{channel}/{split}"
    for channel in ("iOS", "Android", "Mic")
    for split in ("dev", "test")
}


def read_paths(folder: Path) -> dict[str, str]:
    """Utterance id -> path relative to ``folder``: as wav.scp says, or by looking where there is none."""
    if not (folder / "wav.scp").exists():
        return {path.stem: path.relative_to(folder).as_posix() for path in sorted((folder / "wav").rglob("*.wav"))}
    lines = (folder / "wav.scp").read_text(encoding="utf-8").split("\n")
    return dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)


def samples_of(folder: Path) -> Iterator[SampleSpec]:
    """Every transcript, then every recording that has none."""
    paths = read_paths(folder)
    seen = set()
    for row in read_table(folder / "trans.txt", ("utterance", "text")):
        if row.problem:
            yield SampleSpec(f"line-{row.number}", {}, (), problem=row.problem)
            continue
        utterance = row.fields["utterance"].strip()
        seen.add(utterance)
        path, problem = (
            locate(folder, paths[utterance]) if utterance in paths else ("", "transcript without a recording")
        )
        metadata = {
            "task": "transcribe",
            "audio_language": "zh",
            "text_language": "zh",
            "text": half_width(row.fields["text"]).strip().lower(),
            "source": "aishell2",
        }
        yield SampleSpec(utterance, metadata, (path,), problem=problem)
    for utterance in (utterance for utterance in paths if utterance not in seen):
        yield SampleSpec(utterance, {}, (), skip_reason="recording without a transcript")


def prepare(args: argparse.Namespace) -> None:
    """Write the sets."""
    root = args.input / "AISHELL-2" if (args.input / "AISHELL-2").is_dir() else args.input
    names = args.sets or [name for name, folder in FOLDERS.items() if (root / folder / "trans.txt").is_file()]
    missing = [FOLDERS[name] for name in names if not (root / FOLDERS[name] / "trans.txt").is_file()]
    if missing or not names:
        raise ConfigError(
            f"'{root}' has no {(missing or list(FOLDERS.values()))[0]}/trans.txt; expected the released tree"
        )
    for name in names:
        options = SetOptions.from_arguments(
            args,
            name=f"aishell2_{name}",
            split=name.rpartition("_")[2],
            license="AISHELL-2 (research, on application)",
            recipe={"corpus": "aishell2", "revision": REVISION, "set": name},
        )
        write_dataset(samples_of(root / FOLDERS[name]), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of sets."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder AISHELL-2, or the one it lies in")
    parser.add_argument("--sets", nargs="+", choices=FOLDERS, help="default: all that are there")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
