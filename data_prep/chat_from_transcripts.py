#!/usr/bin/env python
"""Chat data by rule from a transcribed set: both interaction modes, no mode tag.

Every transcribed clip becomes a voice chat (the user turn is audio only; the assistant repeats in the spoken language
what it heard) and an audio analysis (audio and a written instruction: which language, or the transcript); every
translation record becomes an analysis that asks for the translation. The wordings are in prompts/chat_forms.py.

    python -m data_prep.chat_from_transcripts --input data/asterisk_pretrain_train --output data
"""

from __future__ import annotations

import argparse
import functools
import zlib
from collections.abc import Iterator
from typing import Any

from qwen_audio_train.prompts import chat_forms
from qwen_audio_train.samples import PretrainRecord
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset
from qwen_audio_train.shards.reader import ShardSet

REVISION = 1
"""Of this file's rules: raise it when they change what the set holds."""
AUDIO = {"type": "audio"}


def conversations_of(record: PretrainRecord) -> Iterator[tuple[str, list[dict[str, Any]], str]]:
    """(kind, user content, answer) of each conversation that a record gives."""
    choice = zlib.crc32(record.origin.key.encode())
    if record.task == "translate":
        yield "translate", [AUDIO, _text(chat_forms.translate_instruction(choice, record.text_language))], record.text
    if record.task != "transcribe":
        return
    if record.audio_language in chat_forms.VOICE_CHAT_TEMPLATES:
        yield "voice_chat", [AUDIO], chat_forms.voice_chat_answer(record.audio_language, record.text)
    if (choice >> 8) % 2:
        answer = chat_forms.language_answer(record.audio_language)
        yield "language", [AUDIO, _text(chat_forms.language_question(choice))], answer
    else:
        yield "transcribe", [AUDIO, _text(chat_forms.transcribe_instruction(choice))], record.text


def samples_of(shards: ShardSet) -> Iterator[SampleSpec]:
    """Conversations of a set, mixed by a hash of their keys."""
    specs = []
    for index in range(len(shards)):
        record = shards.record(index)
        if not isinstance(record, PretrainRecord):
            continue
        for kind, content, answer in conversations_of(record):
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            metadata = {
                "messages": messages,
                "source": record.source,
                "license": record.license,
                "question": kind,
                "audio_language": record.audio_language,
            }
            key = f"{kind}/{record.origin.key.partition('/')[2] or record.origin.key}"
            specs.append(SampleSpec(key, metadata, ((str(shards.directory), index),)))
    return iter(sorted(specs, key=lambda spec: zlib.crc32(spec.key.encode())))


def read_clip_of(place: tuple[str, int]) -> tuple[bytes, str]:
    """The encoded bytes of a record's only clip, verified."""
    shards = _opened(place[0])
    record = shards.record(place[1])
    return shards.read_clip_bytes(record.clips[0], record.origin), record.clips[0].encoding


@functools.lru_cache(maxsize=4)
def _opened(directory: str) -> ShardSet:
    return ShardSet.open(directory)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def prepare(args: argparse.Namespace) -> None:
    """Write ``<name with pretrain replaced by chat>`` beside the other sets."""
    shards = ShardSet.open(args.input)
    name = shards.name.replace("pretrain", "chat") if "pretrain" in shards.name else f"{shards.name}_chat"
    options = SetOptions.from_arguments(
        args,
        name=name,
        split=shards.split,
        license="as its clips",
        recipe={"corpus": "chat_from_transcripts", "revision": REVISION, "input": shards.fingerprint},
    )
    write_dataset(samples_of(shards), read_clip_of, options)


if __name__ == "__main__":
    run_corpus(prepare, corpus_arguments(__doc__.splitlines()[0], "a pretraining set with transcripts"))
