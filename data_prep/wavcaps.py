#!/usr/bin/env python
r"""WavCaps: json_files/{source}/*_final.json and unpacked flac, one folder a source (academic use only).

Makes wavcaps_{audioset,bbc,freesound,soundbible}_train. The ids of --blacklists (JSON files: a list of ids, or an
object of lists) overlap with AudioCaps, Clotho and ESC-50 and are left out. So are clips over 30 s, by the stated
duration and before anything is read: captions describe whole clips, so cutting one would leave its caption untrue.

    python data_prep/wavcaps.py --input /corpora/WavCaps --blacklists /corpora/WavCaps/json_files/blacklist/*.json \
        --output data
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

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
MAX_SECONDS = 30.0
SOURCES = {
    "audioset": ("AudioSet_SL", "as_final.json"),
    "bbc": ("BBC_Sound_Effects", "bbc_final.json"),
    "freesound": ("FreeSound", "fsd_final.json"),
    "soundbible": ("SoundBible", "sb_final.json"),
}
KEPT = ("title", "author", "href")


def read_blacklists(paths: list[Path]) -> Set[str]:
    """Ids without suffix. Raises ConfigError for a file of another form."""
    banned: set[str] = set()
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = list(content.values()) if isinstance(content, dict) else [content]
        if not all(isinstance(entries, list) for entries in lists):
            raise ConfigError(f"'{path}': expected a list of ids or an object of such lists")
        banned.update(_plain_id(entry) for entries in lists for entry in entries)
    return banned


def _plain_id(identity: Any) -> str:
    """AudioSet ids end in .wav and may begin with Y; the others are numbers."""
    return str(identity).removesuffix(".wav").removesuffix(".flac")


def samples_of(table: Path, audio: Path, source: str, banned: Set[str]) -> Iterator[SampleSpec]:
    """Every entry of a source. Raises ConfigError where the file is of another form."""
    content = json.loads(table.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ConfigError(f"'{table}': expected an object with a list 'data'")
    for entry in content["data"]:
        identity = _plain_id(entry["id"])
        path = audio / f"{identity}.flac"
        seconds = float(entry["duration"])
        reason = (
            "on a blacklist (overlaps with an evaluation set)"
            if identity in banned
            else f"longer than {MAX_SECONDS:g} s: {seconds:.1f} s"
            if seconds > MAX_SECONDS
            else "no recording"
            if not path.is_file()
            else None
        )
        metadata = {
            "task": "caption",
            "audio_language": "zxx",
            "text_language": "en",
            "text": str(entry["caption"]).strip(),
            "source": f"wavcaps-{source}",
            **{name: entry[name] for name in KEPT if entry.get(name)},
        }
        yield SampleSpec(f"{source}/{identity}", metadata, (str(path),), reason)


def prepare(args: argparse.Namespace) -> None:
    """Write one set a source."""
    banned = read_blacklists(args.blacklists)
    digest = zlib.crc32("\n".join(sorted(banned)).encode())
    for source in args.sources:
        folder, file = SOURCES[source]
        table = args.input / "json_files" / folder / file
        audio = (args.audio or args.input / "audio") / folder
        if not table.is_file() or not audio.is_dir():
            raise ConfigError(
                f"expected '{table}' and the unpacked clips in '{audio}'; leave {source} out by --sources"
            )
        options = SetOptions.from_arguments(
            args,
            name=f"wavcaps_{source}_train",
            split="train",
            license="academic use only, clips by their owners",
            recipe={"corpus": "wavcaps", "revision": REVISION, "source": source, "blacklists_crc32": digest},
        )
        write_dataset(samples_of(table, audio, source, banned), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments, clips, sources and blacklists."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds json_files")
    parser.add_argument("--audio", type=Path, help="folder with a folder of flac files a source (default: audio)")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=tuple(SOURCES), help="sets to make")
    help_text = "JSON files of ids to leave out; say --blacklists without any to keep what overlaps"
    parser.add_argument("--blacklists", nargs="*", type=Path, required=True, help=help_text)
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
