#!/usr/bin/env python
"""AISHELL-1 (openslr 33): data_aishell/wav/{train,dev,test}/S*/*.wav with one transcript file for all.

Makes aishell1_{train,dev,test}. The spaces that the release puts between words are removed, and full-width letters and
digits become ASCII. Recordings without a transcript, of which there are some, are listed as left out. As released, each
speaker is a .tar.gz in wav/; such archives are read as they are.

    python data_prep/aishell1.py --input /corpora/data_aishell --output data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.clip_sources import archive_files, read_media
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset
from qwen_audio_train.shards.released_text import half_width

REVISION = 1
SPLITS = ("train", "dev", "test")
TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
SAMPLES_PER_SHARD = 200
"""Samples carry their bytes to the workers, so fewer at a time."""


def read_transcripts(path: Path) -> dict[str, str]:
    """Utterance id -> text."""
    texts = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        utterance, _, text = line.strip().partition(" ")
        if utterance:
            texts[utterance] = half_width("".join(text.split()))
    return texts


def recordings_of(root: Path, split: str) -> Iterator[tuple[str, Any]]:
    """(utterance, clip) of a split, from its folder or, where nothing is unpacked, from the speakers' archives."""
    folder = root / "wav" / split
    if folder.is_dir():
        yield from ((path.stem, str(path)) for path in sorted(folder.glob("*/*.wav")))
        return
    for archive in sorted((root / "wav").glob("S*.tar.gz")):

        def of_split(name: str) -> bool:
            return name.endswith(".wav") and split in PurePosixPath(name).parts[:-1]

        for name, data in archive_files(archive, of_split):
            yield PurePosixPath(name).stem, (data, "wav")


def samples_of(root: Path, split: str) -> Iterator[SampleSpec]:
    """Every recording of a split."""
    texts = read_transcripts(root / TRANSCRIPT)
    for utterance, clip in recordings_of(root, split):
        metadata = {
            "task": "transcribe",
            "audio_language": "zh",
            "text_language": "zh",
            "text": texts.get(utterance),
            "source": "aishell1",
            "speaker": utterance[6:11],
        }
        reason = None if utterance in texts else "recording without a transcript"
        yield SampleSpec(f"{split}/{utterance}", metadata, (clip,), skip_reason=reason)


def prepare(args: argparse.Namespace) -> None:
    """Write the sets."""
    root = args.input / "data_aishell" if (args.input / "data_aishell").is_dir() else args.input
    if not (root / TRANSCRIPT).is_file() or not (root / "wav").is_dir():
        raise ConfigError(f"'{root}' has no {TRANSCRIPT} or no wav; expected the released tree")
    for split in args.splits:
        options = SetOptions.from_arguments(
            args,
            name=f"aishell1_{split}",
            split=split,
            license="Apache-2.0",
            recipe={"corpus": "aishell1", "revision": REVISION, "split": split},
            samples_per_shard=SAMPLES_PER_SHARD,
        )
        write_dataset(samples_of(root, split), read_media, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder data_aishell, or the one it lies in")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
