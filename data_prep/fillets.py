#!/usr/bin/env python
"""Fish Fillets NG: acted game dialogue in Czech and Dutch, with every line's English and other translations.

Recordings lie in sound/LEVEL/[PART/]LANGUAGE/ID.ogg, lines in script/LEVEL/*dialogs_LANGUAGE.lua as
dialogId("ID", "FONT", "English") followed by dialogStr("the line"). Makes fillets_pretrain_{train,dev,test}, split by
level; a text of the test levels is nowhere else. Every clip is transcribed and translated into --translate-into.

    python -m data_prep.fillets --output data
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from data_prep.held_out import Candidate, bucket_split, key_of, separate, write_splits
from qwen_audio_train.prompts.tasks import language_name
from qwen_audio_train.shards.prepare import SampleSpec, corpus_arguments, run_corpus

logger = logging.getLogger(__name__)

REVISION = 1
LICENSE = "GPL-2.0-only"
TEXTS = "fillets-ng-data"
SPOKEN = ("cs", "nl")
PACKAGES = (TEXTS, *(f"{TEXTS}-{language}" for language in SPOKEN))
GAME = "usr/share/games/fillets-ng"
VOICES = {"font_big": "big fish", "font_small": "small fish"}

_STRING = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(rf"dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)(?:\s*dialogStr\(\s*{_STRING}\s*\))?")
COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)

Lines = dict[tuple[str, str], "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of dialogue in one language."""

    font: str
    english: str
    text: str
    """Empty where there is no translation."""


def read_lines(scripts: Path, language: str) -> Lines:
    """(level, id) -> line, for all levels."""
    lines: Lines = {}
    for path in sorted(scripts.glob(f"*/*dialogs_{language}.lua")):
        source = COMMENT.sub("", path.read_text(encoding="utf-8"))
        for identity, font, english, text in LINE.findall(source):
            lines[path.parent.name, identity] = Line(font, _plain(english), _plain(text))
    return lines


def _plain(literal: str) -> str:
    """A Lua string without escapes; they only quote characters here, and a line break is a space."""
    return " ".join(re.sub(r"\\(.)", lambda match: " " if match[1] == "n" else match[1], literal).split())


def samples_of(unpacked: Path, translate_into: list[str]) -> Iterator[Candidate]:
    """Every recording with each of its tasks; those without a line are listed as left out."""
    scripts = unpacked / TEXTS / GAME / "script"
    texts = {language: read_lines(scripts, language) for language in {*SPOKEN, *translate_into} - {"en"}}
    for language in SPOKEN:
        sounds = unpacked / f"{TEXTS}-{language}" / GAME / "sound"
        found = 0
        for path in sorted(sounds.glob(f"**/{language}/*.ogg")):
            level = path.relative_to(sounds).parts[0]
            line = texts[language].get((level, path.stem))
            yield _candidate(path, language, level, "transcribe", language, line, line.text if line else "")
            if line is None or not line.text:
                continue
            found += 1
            for target in translate_into:
                other = texts[target].get((level, path.stem)) if target != "en" else None
                text = line.english if target == "en" else other.text if other else ""
                if target != language:
                    yield _candidate(path, language, level, "translate", target, line, text)
        logger.info("fillets: %d of %d %s lines are recorded", found, len(texts[language]), language)


def _candidate(
    path: Path, language: str, level: str, task: str, text_language: str, line: Line | None, text: str
) -> Candidate:
    metadata = {
        "task": task,
        "audio_language": language,
        "text_language": text_language,
        "text": text,
        "source": f"{TEXTS}-{language}",
        "level": level,
        "voice": VOICES.get(line.font, line.font) if line else "",
    }
    speech = any(character.isalnum() for character in text)
    reason = "recording without a line" if line is None else None if speech else f"no {text_language} text"
    target = [] if task == "transcribe" else [text_language]
    parts = (level, *path.parent.parts[path.parent.parts.index(level) + 1 : -1], path.stem)
    spec = SampleSpec(key_of(task, language, *target, *parts), metadata, (str(path),), reason)
    return Candidate(bucket_split(level, dev_percent=6), spec)


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    for language in args.translate_into:
        language_name(language)
    unpacked, versions = fetch_and_unpack(PACKAGES, "fillets", args)
    recipe = {"revision": REVISION, "packages": versions, "translate_into": args.translate_into}
    write_splits(separate(samples_of(unpacked, args.translate_into)), "fillets", args, license=LICENSE, recipe=recipe)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the languages to translate into."""
    parser = corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)
    help_text = "languages of the translations (en, de, sv, bg, ru, nl, cs, pl, it, fr, es); none: --translate-into"
    parser.add_argument("--translate-into", nargs="*", default=["en"], metavar="LANGUAGE", help=help_text)
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
