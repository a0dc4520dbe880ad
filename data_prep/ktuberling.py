#!/usr/bin/env python
"""KTuberling: single words of a children's game, spoken in some 20 languages and translated into English.

sounds/LANGUAGE.soundtheme maps an English name (``moon_rocket``, prefixed by its play field) to a recording. What is
said is not written anywhere, so the word is translated, never transcribed. A number after a name is dropped
(``pizzeria_olive3``), a name that is no word (``tux-wow``) is left out. Makes ktuberling_pretrain_{train,dev,test},
split by the word. Some themes list recordings that the package does not ship, or one name twice: counted as left out.

    python -m data_prep.ktuberling --output data
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from data_prep.held_out import Candidate, bucket_split, key_of, separate, write_splits
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts.wordings import LANGUAGES
from qwen_audio_train.shards.prepare import SampleSpec, corpus_arguments, run_corpus

REVISION = 1
LICENSE = "GPL-2.0-or-later"
PACKAGES = ("ktuberling-data",)
SOUNDS = "ktuberling-data/usr/share/ktuberling/sounds"
MAX_THEME_BYTES = 1 << 20
FIELD = re.compile(r"^(?:egypt|moon|pizzeria|tv|xmas|robot_workshop|butterflies)_")
CHARACTER = re.compile(r"^(?:tux|whitch)\b|tux$|^tuberling$")
"""The penguin in costume, and what it exclaims: no word that a translation could be checked against."""
WORDS = {
    "brocolli": "broccoli", "sphynx": "sphinx", "palmtree": "palm tree", "fallingstar": "shooting star",
    "fireengine": "fire engine", "moonwalker": "moon walker", "ufo": "UFO", "sherif": "sheriff",
}  # fmt: skip
CODES = {"nn": "no"}


def concept_of(name: str) -> str | None:
    """The English word of a sound's name, or None where it is none."""
    if CHARACTER.search(name):
        return None
    word = re.sub(r"\d+$", "", FIELD.sub("", name)).replace("_", " ").replace("-", " ").strip()
    return WORDS.get(word, word) or None


def samples_of(sounds: Path) -> Iterator[Candidate]:
    """Every entry of every theme. Raises ConfigError for a theme that is no plain XML."""
    for theme in sorted(sounds.glob("*.soundtheme")):
        code = theme.stem
        language = CODES.get(code, code.partition("@")[0])
        for name, file in read_theme(theme):
            path = (sounds / file).resolve()
            concept = concept_of(name)
            reason = (
                f"language without a name in prompts/wordings.py: {code}"
                if language not in LANGUAGES
                else f"name that is no word: {name}"
                if concept is None
                else "English: nothing to translate"
                if language == "en"
                else None
            )
            problem = None if path.is_relative_to(sounds.resolve()) and path.is_file() else f"no recording: {file}"
            metadata = {
                "task": "translate",
                "audio_language": language,
                "text_language": "en",
                "text": concept or name,
                "source": PACKAGES[0],
                "sound": name,
            }
            spec = SampleSpec(key_of("translate", code, name), metadata, (str(path),), reason, problem)
            yield Candidate(bucket_split(concept or name), spec)


def read_theme(path: Path) -> list[tuple[str, str]]:
    """Names and files of a theme. A document type, with which XML expands without bound, is refused."""
    raw = path.read_bytes()
    if len(raw) > MAX_THEME_BYTES or b"<!ENTITY" in raw:
        raise ConfigError(f"'{path}': over {MAX_THEME_BYTES} bytes or with XML entities; expected the released file")
    try:
        root = ElementTree.fromstring(raw)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        raise ConfigError(f"'{path}' is no XML: {error}") from error
    return [(sound.attrib["name"], sound.attrib["file"]) for sound in root.iter("sound")]


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    unpacked, versions = fetch_and_unpack(PACKAGES, "ktuberling", args)
    recipe = {"revision": REVISION, "packages": versions}
    candidates = separate(samples_of(unpacked / SOUNDS))
    write_splits(candidates, "ktuberling", args, license=LICENSE, recipe=recipe)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments."""
    return corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
