#!/usr/bin/env python
"""VocalSound: audio_16k/{f|m}{speaker}_{n}_{class}.wav with datafiles/{tr,val,te}.json and a table of class names.

Makes vocalsound_{train,dev,test}. The target is the class name of class_labels_indices_vs.csv, in lower case ("throat
clearing"), to which the JSON files point by a code. Their paths are those of another machine: only the name counts.

    python data_prep/vocalsound.py --input /corpora/VocalSound --output data
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
DATAFILES = {"train": "tr", "dev": "val", "test": "te"}
LABEL_TABLE = "class_labels_indices_vs.csv"
FILE_NAME = re.compile(r"([fm]\d+)_\d+_([a-z]+)\.wav")


def read_class_names(root: Path) -> dict[str, str]:
    """Class code -> its name in lower case."""
    found = sorted(root.rglob(LABEL_TABLE))
    if not found:
        raise ConfigError(f"'{root}' has no {LABEL_TABLE}; expected the released tree")
    with found[0].open(encoding="utf-8", newline="") as file:
        return {row["mid"]: row["display_name"].strip().lower() for row in csv.DictReader(file)}


def samples_of(root: Path, split: str, names: dict[str, str]) -> Iterator[SampleSpec]:
    """Every entry of a split; one whose file name contradicts its label is a problem."""
    path = root / "datafiles" / f"{DATAFILES[split]}.json"
    for number, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        file_name, label = PurePosixPath(entry["wav"]).name, names.get(entry["labels"], "")
        match = FILE_NAME.fullmatch(file_name)
        if match is None:
            yield SampleSpec(f"entry-{number}", {}, (), problem=f"unknown form of file name: {entry['wav']!r}")
            continue
        problem = None
        if match[2] != label.replace(" ", ""):
            problem = f"label {entry['labels']!r} ({label or 'unknown'}) of a file named {file_name}"
        metadata = {
            "task": "vocal_sound",
            "audio_language": "zxx",  # no linguistic content (ISO 639)
            "text_language": "en",
            "text": label,
            "source": "vocalsound",
            "speaker": match[1],
        }
        clip = str(root / "audio_16k" / file_name)
        yield SampleSpec(file_name.removesuffix(".wav"), metadata, (clip,), problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write the sets."""
    names = read_class_names(args.input)
    for split in args.splits:
        if not (args.input / "datafiles" / f"{DATAFILES[split]}.json").is_file():
            raise ConfigError(f"'{args.input}' has no datafiles/{DATAFILES[split]}.json; expected the released tree")
        options = SetOptions.from_arguments(
            args,
            name=f"vocalsound_{split}",
            split=split,
            license="CC-BY-SA-4.0",
            recipe={"corpus": "vocalsound", "revision": REVISION, "split": split},
        )
        write_dataset(samples_of(args.input, split, names), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds audio_16k and datafiles")
    parser.add_argument("--splits", nargs="+", choices=DATAFILES, default=tuple(DATAFILES), help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
