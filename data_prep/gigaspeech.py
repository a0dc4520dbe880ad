#!/usr/bin/env python
"""GigaSpeech: GigaSpeech.json with audio/{podcast,youtube,audiobook}/**/*.opus, cut into its segments.

Makes one set per subset, for instance gigaspeech_xs. Texts become lower case and the four punctuation tags become
signs; segments without speech (<SIL> <MUSIC> <NOISE> <OTHER>) are listed as left out. Only the segment is decoded. The
manifest has some gigabytes and is read recording by recording.

    python data_prep/gigaspeech.py --input /corpora/GigaSpeech --output data --subsets XS DEV TEST
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.clip_sources import Span, read_span
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset
from qwen_audio_train.shards.released_text import locate

REVISION = 1
SPLIT_OF_SUBSET = {"XS": "train", "S": "train", "M": "train", "L": "train", "XL": "train", "DEV": "dev", "TEST": "test"}
"""XS to XL hold one another."""
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = frozenset({"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"})
LIST_START = re.compile(r'"audios"\s*:\s*\[')
BETWEEN = re.compile(r"[\s,]*")
CHUNK_CHARACTERS = 4 << 20
MAX_RECORDING_CHARACTERS = 256 << 20


def recordings_of(manifest: Path) -> Iterator[dict[str, Any]]:
    """The entries of ``audios``, one at a time. Raises ConfigError for a manifest that is cut or none."""
    decoder, buffer, at = json.JSONDecoder(), "", None
    with manifest.open(encoding="utf-8") as file:
        while chunk := file.read(CHUNK_CHARACTERS):
            buffer = buffer[at or 0 :] + chunk
            if at is None and (start := LIST_START.search(buffer)) is None:
                continue
            at = start.end() if at is None else 0
            while (at := BETWEEN.match(buffer, at).end()) < len(buffer) and buffer[at] != "]":
                try:
                    recording, at = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError:
                    break  # it goes on in the next chunk
                yield recording
            if buffer.startswith("]", at):
                return
            if len(buffer) - at > MAX_RECORDING_CHARACTERS:
                break
    raise ConfigError(f"'{manifest}' is no whole GigaSpeech manifest: its list 'audios' has no end; fetch it again")


def clean_text(text: str) -> str:
    """Lower case with punctuation signs; empty where nothing is said. Raises ValueError for another tag."""
    clean = ""
    for word in text.split():
        if word in NO_SPEECH:
            continue
        if word.startswith("<") and word not in PUNCTUATION:
            raise ValueError(f"unknown tag {word}")
        clean += PUNCTUATION[word] if word in PUNCTUATION else f" {word.lower()}"
    return clean.strip() if any(character.isalnum() for character in clean) else ""


def samples_of(root: Path, subset: str) -> Iterator[SampleSpec]:
    """Every segment of a subset."""
    for recording in recordings_of(root / "GigaSpeech.json"):
        path, outside = locate(root, recording["path"])
        for segment in recording["segments"]:
            if f"{{{subset}}}" in segment["subsets"]:
                yield _spec(segment, path, outside)


def _spec(segment: dict[str, Any], path: str, problem: str | None) -> SampleSpec:
    text = ""
    try:
        text = clean_text(segment["text_tn"])
    except ValueError as error:
        problem = str(error)
    metadata = {
        "task": "transcribe",
        "audio_language": "en",
        "text_language": "en",
        "text": text,
        "source": "gigaspeech",
        "speaker": segment.get("speaker", "N/A"),
    }
    reason = None if text or problem else f"no speech: {segment['text_tn']}"
    span = Span(path, float(segment["begin_time"]), float(segment["end_time"]))
    return SampleSpec(segment["sid"], metadata, (span,), skip_reason=reason, problem=problem)


def prepare(args: argparse.Namespace) -> None:
    """Write one set per subset."""
    if not (args.input / "GigaSpeech.json").is_file():
        raise ConfigError(f"'{args.input}' has no GigaSpeech.json; expected the released tree")
    for subset in args.subsets:
        options = SetOptions.from_arguments(
            args,
            name=f"gigaspeech_{subset.lower()}",
            split=SPLIT_OF_SUBSET[subset],
            license="GigaSpeech terms (research)",
            recipe={"corpus": "gigaspeech", "revision": REVISION, "subset": subset},
        )
        write_dataset(samples_of(args.input, subset), read_span, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of subsets."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds GigaSpeech.json and audio")
    parser.add_argument("--subsets", nargs="+", choices=SPLIT_OF_SUBSET, required=True, help="one set each")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
