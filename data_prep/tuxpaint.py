#!/usr/bin/env python
"""Tux Paint's stamps: short descriptions of pictures, read by one volunteer a language, with translations.

NAME_desc_LANGUAGE.ogg (or .wav, or by mistake .ogg.ogg) is a reading of NAME.txt, whose first line is English and whose
others are ``LANGUAGE.utf8=text``. Under symbols/ it is NAME_LANGUAGE.ogg as well, and English where no language stands.
Makes tuxpaint_pretrain_{train,dev,test}, split by the English text. NAME.ogg of other stamps is the sound of the thing:
data_prep/sounds.py takes it.

    python -m data_prep.tuxpaint --output data
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from data_prep.held_out import Candidate, bucket_split, key_of, normal_text, separate, write_splits
from qwen_audio_train.prompts.wordings import LANGUAGES
from qwen_audio_train.shards.prepare import SampleSpec, corpus_arguments, run_corpus

REVISION = 1
LICENSE = "GPL-2.0-or-later"
PACKAGES = ("tuxpaint-stamps-default",)
STAMPS = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
CODES = {"nb": "no", "nn": "no", "zh_tw": "zh", "zh_cn": "zh", "en_gb": "en"}
"""Codes that the project names otherwise; a region is dropped (pt_BR is pt)."""
DESCRIPTION = re.compile(r"(?P<name>.+)_desc(?:_(?P<code>[A-Za-z]{2,3}(?:_[A-Za-z]{2})?))?")
SYMBOL = re.compile(r"(?P<name>.+?)(?:_(?P<code>[a-z]{2,3}(?:_[A-Za-z]{2})?))?")


def read_texts(path: Path) -> dict[str, str]:
    """Code as in the file -> text; the first line, which has no code, is ``en``."""
    first, *others = path.read_text(encoding="utf-8-sig").splitlines()
    texts = {code: text for code, _, text in (line.partition(".utf8=") for line in others) if text.strip()}
    return {"en": first.strip(), **{code: text.strip() for code, text in texts.items()}}


def named_stamp(path: Path, root: Path) -> tuple[Path, str] | None:
    """The stamp's text file and the code of the language; None where the recording is a sound effect."""
    stem = path.name.removesuffix(path.suffix).removesuffix(".ogg")
    match = DESCRIPTION.fullmatch(stem)
    if match is None and path.relative_to(root).parts[0] == "symbols":
        if (path.parent / f"{stem}.txt").exists():
            return path.parent / f"{stem}.txt", "en"
        match = SYMBOL.fullmatch(stem)
    return None if match is None else (path.parent / f"{match['name']}.txt", match["code"] or "en")


def samples_of(root: Path) -> Iterator[Candidate]:
    """Every reading, transcribed and translated into English."""
    for path in sorted(file for file in root.rglob("*") if file.suffix in (".ogg", ".wav")):
        found = named_stamp(path, root)
        if found is None:
            continue
        text_path, code = found
        texts = read_texts(text_path) if text_path.exists() else {}
        language = CODES.get(code.lower(), code.partition("_")[0])
        # Without a text of its own region the language's will do, and a written no is bokmal.
        own = texts.get(code) or texts.get(code.partition("_")[0]) or ""
        reason = (
            "no text file beside the recording"
            if not texts
            else f"language without a name in prompts/wordings.py: {code}"
            if language not in LANGUAGES
            else f"no text in the language of the recording: {code}"
            if not own
            else None
        )
        english = texts.get("en", "")
        stem = path.relative_to(root).with_suffix("").as_posix()
        for task, text_language, text in (("transcribe", language, own), ("translate", "en", english)):
            if task == "translate" and (language == "en" or reason is not None):
                continue
            metadata = {
                "task": task,
                "audio_language": language,
                "text_language": text_language,
                "text": text,
                "source": PACKAGES[0],
                "english": english,
                "voice": f"{code} volunteer",
            }
            spec = SampleSpec(key_of(task, language, stem), metadata, (str(path),), reason)
            # What has no text is left out anyway, and must not make a set of nothing else.
            yield Candidate(bucket_split(normal_text(english)) if english else "train", spec)


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    unpacked, versions = fetch_and_unpack(PACKAGES, "tuxpaint", args)
    recipe = {"revision": REVISION, "packages": versions}
    write_splits(separate(samples_of(unpacked / STAMPS)), "tuxpaint", args, license=LICENSE, recipe=recipe)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments."""
    return corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
