#!/usr/bin/env python
"""festvox-ru: 620 sentences of a Russian novel, one male reader in a studio, 16 kHz.

etc/txt.done.data holds ``( ru_0001 "text" )``; a plus sign before a vowel marks the stress and is dropped. Makes
festvox_ru_pretrain_{train,dev,test}; the split is by the last two digits of the number, in runs of neighbours (94 to 99
test, 90 to 93 dev), because neighbours share the scene and its words.

    python -m data_prep.festvox_ru --output data
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from data_prep.held_out import Candidate, separate, write_splits
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.prepare import SampleSpec, corpus_arguments, run_corpus

REVISION = 1
LICENSE = "LicenseRef-festvox-ru (BSD-like)"
PACKAGES = ("festvox-ru",)
VOICE = "festvox-ru/usr/share/festival/voices/russian/msu_ru_nsh_clunits"
LINE = re.compile(r'\(\s*(ru_(\d+))\s+"(.*)"\s*\)')


def split_of(number: int) -> str:
    """By place in each hundred."""
    return "test" if number % 100 >= 94 else "dev" if number % 100 >= 90 else "train"


def samples_of(voice: Path) -> Iterator[Candidate]:
    """Every sentence. Raises ConfigError for a line that is not of the expected form."""
    path = voice / "etc" / "txt.done.data"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"'{path}': line {line[:60]!r} is not of the form ( ru_0001 \"text\" )")
        identity, number, text = match.groups()
        wav = voice / "wav" / f"{identity}.wav"
        metadata = {
            "task": "transcribe",
            "audio_language": "ru",
            "text_language": "ru",
            "text": " ".join(text.replace("+", "").split()),
            "source": PACKAGES[0],
        }
        problem = None if wav.exists() else "transcript without a recording"
        yield Candidate(split_of(int(number)), SampleSpec(identity, metadata, (str(wav),), problem=problem))


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    unpacked, versions = fetch_and_unpack(PACKAGES, "festvox_ru", args)
    recipe = {"revision": REVISION, "packages": versions}
    write_splits(separate(samples_of(unpacked / VOICE)), "festvox_ru", args, license=LICENSE, recipe=recipe)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments."""
    return corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
