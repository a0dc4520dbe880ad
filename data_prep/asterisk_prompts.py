#!/usr/bin/env python
"""Asterisk's voice prompts in five languages: real speech, fetched as Debian packages and unpacked without root.

Makes pretraining sets asterisk_pretrain_{train,dev,test}: every clip transcribed, and translated into English where the
English text of the same prompt exists. The split is by prompt, across all languages, and no clip that is in test is in
another set, under whatever name.

    python -m data_prep.asterisk_prompts --output data
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset

REVISION = 1
"""Of this file's rules: raise it when they change what the sets hold."""
LICENSES = {"en": "CC-BY-SA-3.0", "es": "CC-BY-SA-3.0", "fr": "CC-BY-SA-3.0", "it": "CC-BY-3.0", "ru": "CC-BY-3.0"}
SPLITS = ("test", "dev", "train")
"""In the order in which a clip that occurs in several is kept."""
MIN_SECONDS = 0.1
REMEDY = (
    "on a system without apt give a folder of the .deb files by --input, or use the second choice, synthesised speech: "
    "data=tts"
)
G722_BITS_PER_SECOND = 64_000

LINE = re.compile(r"([A-Za-z0-9_\-./+]+)\s*:\s*(.*)")
SQUARE_OR_ANGLE = re.compile(r"\[[^\]]*\]|<[^>]*>")
TRAILING_PARENTHESIS = re.compile(r"\s*\([^)]*\)[\s.]*$")
SPOKEN_PARENTHESIS = re.compile(r"\((?:enfatico)\)|[()]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One recording of one prompt."""

    prompt_id: str
    language: str
    path: Path
    voice: str
    text: str | None
    """None where the packages have no transcript."""
    skip_reason: str | None = None

    @property
    def split(self) -> str:
        return split_of(self.prompt_id)


def split_of(prompt_id: str) -> str:
    """By prompt and not by clip: a translation of a test prompt must not be trained on either."""
    bucket = zlib.crc32(prompt_id.encode()) % 100
    return "train" if bucket < 88 else "dev" if bucket < 90 else "test"


def package_names() -> list[str]:
    """Transcripts are in the base packages, recordings at 16 kHz in the g722 ones."""
    return [f"asterisk-core-sounds-{language}{kind}" for language in LICENSES for kind in ("", "-g722")]


def read_transcripts(folder: Path, language: str) -> dict[str, str]:
    """Prompt id -> text as it is in the package."""
    name = f"asterisk-core-sounds-{language}"
    path = folder / name / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    texts: dict[str, str] = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        match = LINE.fullmatch(line.strip())
        if match and match[2]:
            texts[match[1]] = match[2].removeprefix(f"{match[1]}:").strip()
    return texts


def clean_text(text: str) -> str:
    """What is spoken: without stage directions and symbols in brackets; empty for tones and silence."""
    text = SQUARE_OR_ANGLE.sub(" ", text.replace("\ufeff", ""))
    text = TRAILING_PARENTHESIS.sub("", text)
    text = " ".join(SPOKEN_PARENTHESIS.sub(" ", text).split())
    return text if any(character.isalnum() for character in text) else ""


def find_prompts(folder: Path) -> list[Prompt]:
    """All recordings, in a fixed order, with what is left out marked as such."""
    prompts = []
    for language in LICENSES:
        texts = read_transcripts(folder, language)
        root = folder / f"asterisk-core-sounds-{language}-g722" / "usr/share/asterisk/sounds"
        for path in sorted(root.glob("*/**/*.g722")):
            voice, _, prompt_id = path.relative_to(root).with_suffix("").as_posix().partition("/")
            text = texts.get(prompt_id)
            spoken = None if text is None else clean_text(text)
            reason = "no transcript" if spoken is None else None if spoken else f"no speech: {text}"
            prompts.append(Prompt(prompt_id, language, path, voice, spoken, reason))
    return _mark_duplicates(prompts)


def _mark_duplicates(prompts: list[Prompt]) -> list[Prompt]:
    """Keep each recording once: in test before dev before train. Equal g722 bytes decode to equal audio."""
    kept: dict[str, Prompt] = {}
    marked = []
    for prompt in sorted(prompts, key=lambda prompt: SPLITS.index(prompt.split)):
        digest = hashlib.sha256(prompt.path.read_bytes()).hexdigest()
        if prompt.skip_reason is None and digest in kept:
            twin = kept[digest]
            where = "in the same set" if twin.split == prompt.split else f"in {twin.split}"
            marked.append(replace(prompt, skip_reason=f"same audio {where}: {twin.language}/{twin.prompt_id}"))
            continue
        if prompt.skip_reason is None:
            kept[digest] = prompt
        marked.append(prompt)
    return marked


def _within(prompt: Prompt, max_seconds: float | None) -> Prompt:
    """Marks recordings over the limit, so that they are listed like all else that is left out."""
    seconds = prompt.path.stat().st_size * 8 / G722_BITS_PER_SECOND
    if max_seconds is None or prompt.skip_reason is not None or seconds <= max_seconds:
        return prompt
    return replace(prompt, skip_reason=f"{seconds:.1f} s, longer than --max-seconds {max_seconds}")


def samples_of(prompts: list[Prompt], split: str, translate_share: float = 1.0) -> list[SampleSpec]:
    """Samples of a set, languages and tasks mixed by a hash of their keys.

    ``translate_share`` of the translations that could be made are; dev and test always have all of theirs.
    """
    share = translate_share if split == "train" else 1.0
    english = {prompt.prompt_id: prompt.text for prompt in prompts if prompt.language == "en" and prompt.text}
    specs = []
    for prompt in prompts:
        if prompt.split != split:
            continue
        specs.append(_spec(prompt, "transcribe", prompt.language, prompt.text))
        translates = zlib.crc32(f"{prompt.language}/{prompt.prompt_id}".encode()) % 1000 < 1000 * share
        if translates and prompt.language != "en" and prompt.skip_reason is None and prompt.prompt_id in english:
            specs.append(_spec(prompt, "translate", "en", english[prompt.prompt_id]))
    return sorted(specs, key=lambda spec: zlib.crc32(spec.key.encode()))


def _spec(prompt: Prompt, task: str, text_language: str, text: str | None) -> SampleSpec:
    metadata = {
        "task": task,
        "audio_language": prompt.language,
        "text_language": text_language,
        "text": text,
        "source": f"asterisk-core-sounds-{prompt.language}",
        "license": LICENSES[prompt.language],
        "prompt_id": prompt.prompt_id,
        "voice": prompt.voice,
    }
    key = f"{task}/{prompt.language}/{re.sub(r'[^A-Za-z0-9_+/-]', '_', prompt.prompt_id)}"
    return SampleSpec(key, metadata, (str(prompt.path),), prompt.skip_reason)


def read_g722(path: str) -> tuple[bytes, str]:
    """Decode a g722 file, which is 16 kHz mono by definition, and store it without further loss."""
    with av.open(path, format="g722") as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    pcm = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int16)
    if len(pcm) < MIN_SECONDS * SAMPLING_RATE_HZ:
        raise ValueError(f"{len(pcm)} samples, shorter than {MIN_SECONDS} s")
    return encode_flac(pcm.astype(np.float32) / 32768.0), "flac"


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    unpacked, versions = fetch_and_unpack(package_names(), "asterisk", args, remedy=REMEDY)
    prompts = [_within(prompt, args.max_seconds) for prompt in find_prompts(unpacked)]
    for split in reversed(SPLITS):
        name = f"asterisk_pretrain_{split}"
        options = SetOptions.from_arguments(
            args,
            name=name,
            split=split,
            license="CC-BY-SA-3.0",
            recipe={
                "corpus": "asterisk_prompts",
                "revision": REVISION,
                "packages": versions,
                "translate_share": args.translate_share,
                "max_seconds": args.max_seconds,
            },
        )
        write_dataset(samples_of(prompts, split, args.translate_share), read_g722, options)


if __name__ == "__main__":
    parser = corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)
    parser.add_argument("--translate-share", type=float, default=1.0, help="share of the training translations to make")
    parser.add_argument("--max-seconds", type=float, help="leave out (and list) longer recordings, in every set")
    run_corpus(prepare, parser)
