#!/usr/bin/env python
"""LibriSpeech (openslr 12): LibriSpeech/{split}/{speaker}/{chapter}/*.flac with one .trans.txt a chapter.

Makes one set per released split, for instance librispeech_train_clean_100. The release writes its transcripts in
capitals without punctuation; they are stored in lower case, which is what a language model knows.

    python data_prep/librispeech.py --input /corpora/LibriSpeech --output data --splits dev-clean test-clean
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

REVISION = 1
RELEASED_SPLITS = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip


def samples_of(root: Path, released_split: str) -> Iterator[SampleSpec]:
    """Every utterance of a released split; one without its recording is listed as left out."""
    for transcript in sorted((root / released_split).glob("*/*/*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            utterance, _, text = line.partition(" ")
            path = transcript.parent / f"{utterance}.flac"
            metadata = {
                "task": "transcribe",
                "audio_language": "en",
                "text_language": "en",
                "text": text.strip().lower(),
                "source": "librispeech",
                "speaker": utterance.partition("-")[0],
            }
            problem = None if path.exists() else "transcript without a recording"
            yield SampleSpec(f"{released_split}/{utterance}", metadata, (str(path),), problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per split."""
    root = args.input / "LibriSpeech" if (args.input / "LibriSpeech").is_dir() else args.input
    splits = args.splits or [split for split in RELEASED_SPLITS if (root / split).is_dir()]
    missing = [split for split in splits if not (root / split).is_dir()]
    if missing or not splits:
        raise ConfigError(
            f"'{root}' has no folder {' or '.join(missing or RELEASED_SPLITS)}; expected the released tree"
        )
    for split in splits:
        name = f"librispeech_{split.replace('-', '_')}"
        recipe = {"corpus": "librispeech", "revision": REVISION, "split": split}
        options = SetOptions.from_arguments(
            args,
            name=name,
            split=split.partition("-")[0],
            license="CC-BY-4.0",
            recipe=recipe,
        )
        write_dataset(samples_of(root, split), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder LibriSpeech, or the one it lies in")
    parser.add_argument("--splits", nargs="+", choices=RELEASED_SPLITS, help="default: all that are there")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
