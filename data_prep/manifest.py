#!/usr/bin/env python
"""Manifests that users of other tools already have: ms-swift, LLaMA-Factory, and the official evaluation's JSONL.

The shape is recognised line by line:

* ms-swift: {"messages": [...], "audios": [...]} with <audio> in the content, and "rejected_response" in a preference;
* LLaMA-Factory (ShareGPT): "conversations" or "messages" and "audios", and "chosen", "rejected" in a preference;
* official evaluation: {"audio", "prompt", "gt", "source"}: a pretraining sample.

A .json file holds a list of such objects, a .jsonl file one a line. Audio paths are relative to the manifest.

    python data_prep/manifest.py --input my/train.jsonl --output data --split train --license CC-BY-4.0
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.files import sha256_of_file
from qwen_audio_train.shards.prepare import (
    SampleSpec,
    SetOptions,
    corpus_arguments,
    read_audio_file,
    run_corpus,
    write_dataset,
)

REVISION = 1
PLACEHOLDER = "<audio>"
ROLE_OF = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
AUDIO_MARKUP = re.compile(r"<\|audio_bos\|>|<\|AUDIO\|>|<\|audio_eos\|>")
FORCED_TAG = re.compile(r"\s*<\|([a-z]{2,3})\|>\s*$")
OFFICIAL_TASKS = {
    "Detect the language and recognize the speech": "transcribe",
    "Detect the language and translate the speech into": "translate",
    "Recognize the emotion with keywords in": "emotion",
    "Recognize the sentiment with keywords in": "sentiment",
    "Classify the human vocal sound to VocalSound in": "vocal_sound",
    "Generate the caption in": "caption",
}
CODE_OF = {"English": "en", "Mandarin": "zh", "German": "de"}


def read_rows(path: Path) -> Iterator[Any]:
    """Rows of a JSON list or of JSON lines. Raises ConfigError for a file that is neither."""
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".json":
            rows = json.load(file)
            if not isinstance(rows, list):
                raise ConfigError(f"'{path}' holds a {type(rows).__name__}; expected a list (JSON lines end in .jsonl)")
            yield from rows
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"'{path}' line {number} is not JSON: {error}") from error


def payload_of(row: Mapping[str, Any], audio_language: str | None) -> tuple[dict[str, Any], list[str]]:
    """Payload and audio paths of a row of any of the three shapes.

    Raises:
        ValueError: the row is of none of them, or holds what would be lost.
    """
    if "gt" in row and "audio" in row:
        return _evaluation_payload(row, audio_language), [row["audio"]]
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"fields {sorted(row)} are of no known shape; see --help")
    unsupported = {"images", "videos", "tools", "rejected_messages", "rejected_audios"} & {
        k for k, v in row.items() if v
    }
    if unsupported:
        raise ValueError(f"fields {sorted(unsupported)} are not supported")
    messages = [_message(turn) for turn in turns]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    audios = row.get("audios") or []
    payload: dict[str, Any] = {"messages": messages}
    if "rejected_response" in row:
        payload |= {"chosen": messages.pop()["content"], "rejected": row["rejected_response"]}
    elif "chosen" in row or "rejected" in row:
        payload |= {"chosen": _answer(row.get("chosen")), "rejected": _answer(row.get("rejected"))}
    return payload, [audios] if isinstance(audios, str) else list(audios)


def _message(turn: Any) -> dict[str, Any]:
    role = turn.get("role", turn.get("from"))
    text = turn.get("content", turn.get("value"))
    if role not in ROLE_OF or not isinstance(text, str):
        raise ValueError(f"turn {turn!r}: expected a text of {', '.join(ROLE_OF)}")
    if PLACEHOLDER not in text:
        return {"role": ROLE_OF[role], "content": text}
    parts: list[dict[str, str]] = []
    for position, piece in enumerate(text.split(PLACEHOLDER)):
        if position:
            parts.append({"type": "audio"})
        # The chat template sets its own line breaks around a clip.
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return {"role": ROLE_OF[role], "content": parts}


def _answer(value: Any) -> Any:
    return value.get("value", value.get("content")) if isinstance(value, Mapping) else value


def _evaluation_payload(row: Mapping[str, Any], audio_language: str | None) -> dict[str, Any]:
    prompt = AUDIO_MARKUP.sub("", row.get("prompt", "")).strip()
    # The tag that evaluation forces is the first token of the target here.
    forced = FORCED_TAG.search(prompt)
    prompt = FORCED_TAG.sub("", prompt).strip()
    language = forced[1] if forced else audio_language
    if language is None:
        raise ValueError("no language tag in the prompt: give --audio-language")
    payload = {"text": row["gt"], "audio_language": language, "text_language": language}
    for wording, task in OFFICIAL_TASKS.items():
        if prompt.startswith(wording):
            named = prompt.removeprefix(wording).strip(" :")
            if named and named not in CODE_OF:
                raise ValueError(f"target language '{named}' is not one of {', '.join(CODE_OF)}")
            return {**payload, "task": task, "text_language": CODE_OF.get(named, language)}
    return {**payload, "task": "question", "prompt": prompt}


def samples_of(args: argparse.Namespace) -> Iterator[SampleSpec]:
    """Samples of a manifest, in its order."""
    root = args.audio_root or args.input.parent
    for number, row in enumerate(read_rows(args.input)):
        key = f"{args.name}/{number:08d}"
        try:
            payload, paths = payload_of(row, args.audio_language)
        except (ValueError, AttributeError, TypeError) as error:
            yield SampleSpec(key, {}, (), problem=f"row {number}: {error}")
            continue
        source = row["source"] if isinstance(row.get("source"), str) else args.name
        yield SampleSpec(key, {**payload, "source": source}, tuple(str(root / path) for path in paths))


def prepare(args: argparse.Namespace) -> None:
    """Write the manifest's set."""
    args.name = args.name or args.input.stem
    recipe = {
        "corpus": "manifest",
        "revision": REVISION,
        "manifest": sha256_of_file(args.input),
        "audio_language": args.audio_language,
        "split": args.split,
        "license": args.license,
    }
    options = SetOptions.from_arguments(
        args,
        name=args.name,
        split=args.split,
        license=args.license,
        recipe=recipe,
        on_bad=args.on_bad,
    )
    write_dataset(samples_of(args), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and what a manifest does not say of itself."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the manifest, .jsonl or .json")
    parser.add_argument("--split", required=True, help="train, dev or test")
    parser.add_argument("--license", required=True, help="of the audio and texts, for instance CC-BY-4.0")
    parser.add_argument("--name", help="of the set (default: the manifest's file name)")
    parser.add_argument(
        "--audio-root", type=Path, help="what audio paths are relative to (default: the manifest's folder)"
    )
    parser.add_argument("--audio-language", help="ISO code, for evaluation rows whose prompt has no language tag")
    parser.add_argument("--on-bad", choices=("raise", "skip"), default="raise", help="what to do with an unusable row")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
