#!/usr/bin/env python
"""AudioCaps: dataset/{train,val,test}.csv beside 10 s clips that the user fetched, {youtube_id}_{start}.wav.

Makes audiocaps_{train,dev,test}, a sample a row: val and test have five captions a clip, each its own sample, all with
the clip's name in ``clip_id`` so that a metric can gather them. Many clips are gone: rows without one are counted.

    python data_prep/audiocaps.py --input /corpora/audiocaps --audio /corpora/audiocaps/audio --output data
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
FILES = {"train": "train", "dev": "val", "test": "test"}
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")


def find_clip(audio: Path, youtube_id: str, start_time: str) -> Path | None:
    """The clip under the names that downloaders give: with the start in seconds, in milliseconds, or without."""
    seconds = int(float(start_time))
    for stem in (f"{youtube_id}_{start_time}", f"{youtube_id}_{seconds}", f"{youtube_id}_{1000 * seconds}", youtube_id):
        for prefix in ("", "Y"):
            for suffix in SUFFIXES:
                # An id may begin with a dash or hold anything of A-Za-z0-9_-, never a dot or a slash.
                path = audio / f"{prefix}{stem}{suffix}"
                if path.is_file():
                    return path
    return None


def samples_of(table: Path, audio: Path) -> Iterator[SampleSpec]:
    """Every row. Raises ConfigError where a column is missing."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or [])]:
            raise ConfigError(f"'{table}' has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        for row in rows:
            path = find_clip(audio, row["youtube_id"], row["start_time"])
            metadata = {
                "task": "caption",
                "audio_language": "zxx",
                "text_language": "en",
                "text": row["caption"].strip(),
                "source": "audiocaps",
                "clip_id": f"{row['youtube_id']}_{row['start_time']}",
            }
            reason = None if path else "clip was not fetched"
            yield SampleSpec(f"audiocaps/{row['audiocap_id']}", metadata, (str(path),), reason)


def prepare(args: argparse.Namespace) -> None:
    """Write one set a split."""
    folder = args.input / "dataset" if (args.input / "dataset").is_dir() else args.input
    audio = args.audio or args.input / "audio"
    if not audio.is_dir():
        raise ConfigError(f"no folder '{audio}' with the clips; name it by --audio")
    for split in args.splits:
        table = folder / f"{FILES[split]}.csv"
        if not table.is_file():
            raise ConfigError(f"'{folder}' has no {table.name}; expected the released tables")
        recipe = {"corpus": "audiocaps", "revision": REVISION, "split": split}
        options = SetOptions.from_arguments(
            args, name=f"audiocaps_{split}", split=split, license="captions MIT, clips by their owners", recipe=recipe
        )
        own = audio / FILES[split] if (audio / FILES[split]).is_dir() else audio
        write_dataset(samples_of(table, own), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments, the clips and the choice of splits."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds dataset/*.csv")
    parser.add_argument("--audio", type=Path, help="folder of the clips, or of one folder a split (default: audio)")
    parser.add_argument("--splits", nargs="+", choices=FILES, default=tuple(FILES), help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
