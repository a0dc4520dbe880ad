#!/usr/bin/env python
r"""MELD: {train,dev,test}_sent_emo.csv with the videos dia{D}_utt{U}.mp4 of each split, whose sound is taken.

Makes meld_{emotion,sentiment}_{train,dev,test}: the target is the label, the (repaired) utterance is kept beside it.
Videos are read from MELD.Raw.tar.gz, from the {split}.tar.gz in it, or from where these were unpacked; their folders
differ from split to split and some names have a prefix, so they are found by dialogue and utterance.

    python data_prep/meld.py --input /corpora/MELD --output data
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.clip_sources import archive_files, archive_names, read_media
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset

REVISION = 1
SPLITS = ("train", "dev", "test")
VIDEO_NAME = re.compile(r"(.*)dia(\d+)_utt(\d+)\.mp4")
SAMPLES_PER_SHARD = 100
"""Samples carry their videos to the workers, so fewer at a time."""
Utterance = tuple[int, int]
"""Dialogue and utterance id."""


def repair(text: str) -> str:
    """Undo what was read in the wrong encoding: single bytes of cp1252 as C1 controls, UTF-8 as cp1252."""
    if "\u00e2\u20ac" in text:
        with suppress(UnicodeError):  # a mixture of both; the controls are still mended below
            text = text.encode("cp1252").decode("utf-8")
    controls = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    return " ".join("".join(controls.get(character, character) for character in text).split())


def read_labels(path: Path) -> dict[Utterance, dict[str, str]]:
    """Rows of a split's table."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    # Not splitlines: an ellipsis of cp1252 read as Latin-1 is U+0085, which that takes for the end of a line.
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return {(int(row["Dialogue_ID"]), int(row["Utterance_ID"])): row for row in rows}


def choose_videos(names: list[str]) -> dict[Utterance, str]:
    """The video of each utterance; where there are several, the one without a prefix, else the first by name."""
    chosen: dict[Utterance, tuple[str, str]] = {}
    for name in names:
        match = VIDEO_NAME.fullmatch(PurePosixPath(name).name)
        if match is None or match[1].startswith("._"):  # what macOS adds to archives
            continue
        utterance = int(match[2]), int(match[3])
        chosen[utterance] = min(chosen.get(utterance, (match[1], name)), (match[1], name))
    return {utterance: name for utterance, (_, name) in chosen.items()}


def videos_of(root: Path, split: str) -> Iterator[tuple[Utterance, Any]]:
    """Each utterance's video, as a path or as bytes. Unpacked folders, all named after their split, go first."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and split in path.name):
        paths = [path.relative_to(root).as_posix() for path in sorted(folder.rglob("*.mp4"))]
        yield from ((utterance, str(root / name)) for utterance, name in sorted(choose_videos(paths).items()))
        return
    for archive, inner in ((root / f"{split}.tar.gz", None), (root / "MELD.Raw.tar.gz", f"{split}.tar.gz")):
        if archive.is_file():
            chosen = choose_videos(list(archive_names(archive, inner=inner)))
            utterance_of = {name: utterance for utterance, name in chosen.items()}
            for name, data in archive_files(archive, utterance_of.__contains__, inner=inner):
                yield utterance_of[name], (data, "mp4")
            return
    raise ConfigError(f"'{root}' has neither MELD.Raw.tar.gz nor {split}.tar.gz nor a folder of {split} videos")


def samples_of(root: Path, split: str, task: str) -> Iterator[SampleSpec]:
    """Every video, then the rows that have none."""
    rows = read_labels(next(iter(sorted(root.rglob(f"{split}_sent_emo.csv")))))
    seen = set()
    for utterance, video in videos_of(root, split):
        seen.add(utterance)
        if utterance in rows:
            yield _spec(split, task, utterance, rows[utterance], (video,))
        else:
            yield SampleSpec(_key(split, utterance), {}, (), skip_reason="video without a label")
    for utterance, row in rows.items():
        if utterance not in seen:
            yield _spec(split, task, utterance, row, (), "label without a video")


def _key(split: str, utterance: Utterance) -> str:
    return f"{split}/dia{utterance[0]}_utt{utterance[1]}"


def _spec(
    split: str, task: str, utterance: Utterance, row: dict[str, str], clips: tuple[Any, ...], problem: str | None = None
) -> SampleSpec:
    metadata = {
        "task": task,
        "audio_language": "en",
        "text_language": "en",
        "text": row[task.capitalize()].strip().lower(),
        "source": "meld",
        "transcript": repair(row["Utterance"]),
        "speaker": repair(row["Speaker"]),
    }
    return SampleSpec(_key(split, utterance), metadata, clips, problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per task and split."""
    for split in args.splits:
        if not any(args.input.rglob(f"{split}_sent_emo.csv")):
            raise ConfigError(f"'{args.input}' has no {split}_sent_emo.csv; fetch it from the MELD repository")
        for task in args.tasks:
            options = SetOptions.from_arguments(
                args,
                name=f"meld_{task}_{split}",
                split=split,
                license="GPL-3.0",
                recipe={"corpus": "meld", "revision": REVISION, "task": task, "split": split},
                samples_per_shard=SAMPLES_PER_SHARD,
            )
            write_dataset(samples_of(args.input, split, task), read_media, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of tasks and splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "folder of the three tables and the archives or their content")
    parser.add_argument(
        "--tasks", nargs="+", choices=("emotion", "sentiment"), default=("emotion",), help="sets to make"
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
