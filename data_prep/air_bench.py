#!/usr/bin/env python
"""AIR-Bench: {Chat,Foundation}/{part}_meta.json and {part}/{task_name}_{dataset_name}/{path}. Evaluation sets only.

Makes air_bench_chat (the question as ``prompt``, the reference answer as ``text``, ``meta_info`` for the judge, which
gets it in place of the audio) and air_bench_foundation (a choice of up to four; the right answer's words are ``text``;
question, choices and letter stay in the metadata). Clips over 30 s and those that are missing are counted as left out.

    python -m data_prep.air_bench --input /corpora/AIR-Bench-Dataset --output data
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.held_out import key_of
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.prepare import (
    SampleSpec,
    SetOptions,
    as_flac,
    corpus_arguments,
    run_corpus,
    write_dataset,
)

REVISION = 1
PARTS = ("Chat", "Foundation")
LETTERS = ("A", "B", "C", "D")
INSTRUCTION = "Choose the most suitable answer from options A, B, C, and D to respond to the question below."
"""Ours in wording; the official line asks the same."""
SHARED = ("path", "question", "answer_gt", "task_name", "dataset_name", "uniq_id")
MAGIC = {b"fLaC": "flac", b"RIFF": "wav", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3", b"\xff\xf3": "mp3"}


def read_by_content(path: str) -> tuple[bytes, str]:
    """A clip by its first bytes: some are FLAC under a name that ends in wav. Raises ValueError for anything else."""
    data = Path(path).read_bytes()
    for magic, encoding in MAGIC.items():
        if data.startswith(magic):
            return as_flac(data, encoding)
    raise ValueError(f"'{path}' begins with {data[:4]!r}; expected one of {sorted(set(MAGIC.values()))}")


def find_clip(folder: Path, name: str) -> Path | None:
    """The clip, or the one of the same stem: metadata says wav of files that are flac. None for none or one outside."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return None
    path = folder / name
    found = (path, path.with_suffix(".flac"), path.with_suffix(".wav"), path.with_suffix(".mp3"))
    return next((other for other in found if other.is_file()), None)


def choices_of(item: dict[str, Any]) -> list[str]:
    """The choices that are there, in order."""
    return [str(item[name]) for name in (f"choice_{letter.lower()}" for letter in LETTERS) if item.get(name)]


def samples_of(root: Path, part: str) -> Iterator[SampleSpec]:
    """Every item of a part. Raises ConfigError where a field is missing."""
    path = root / part / f"{part}_meta.json"
    for number, item in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        if missing := [name for name in SHARED if name not in item]:
            raise ConfigError(f"'{path}': item {number} has no {', '.join(missing)}")
        clip = find_clip(root / part / f"{item['task_name']}_{item['dataset_name']}", item["path"])
        metadata = {
            "task": "question",
            "audio_language": "en",
            "text_language": "en",
            "text": str(item["answer_gt"]).strip(),
            "prompt": item["question"],
            "source": f"air-bench-{part.lower()}",
            **{name: item[name] for name in ("question", "task_name", "dataset_name", "uniq_id")},
        }
        problem = None if clip else f"no recording: {item['path']}"
        if part == "Chat":
            metadata["meta_info"] = item.get("meta_info", "")
        else:
            choices = choices_of(item)
            metadata |= {"choices": choices, "prompt": _multiple_choice(item["question"], choices)}
            if item["answer_gt"] in choices:
                metadata["letter"] = LETTERS[choices.index(item["answer_gt"])]
            else:
                problem = problem or f"the right answer is none of the choices: {item['answer_gt']!r}"
        key = key_of(str(item["task_name"]), str(item["dataset_name"]), str(item["uniq_id"]))
        yield SampleSpec(key, metadata, (str(clip),), problem=problem)


def _multiple_choice(question: str, choices: list[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([INSTRUCTION, question, *lines])


def prepare(args: argparse.Namespace) -> None:
    """Write one set a part."""
    for part in args.parts:
        if not (args.input / part / f"{part}_meta.json").is_file():
            raise ConfigError(f"'{args.input}' has no {part}/{part}_meta.json; leave it out by --parts")
        options = SetOptions.from_arguments(
            args,
            name=f"air_bench_{part.lower()}",
            split="test",
            license="by source corpus, see AIR-Bench",
            recipe={"corpus": "air_bench", "revision": REVISION, "part": part},
        )
        write_dataset(samples_of(args.input, part), read_by_content, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of parts."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds Chat and Foundation")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="sets to make")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
