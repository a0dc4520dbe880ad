"""The texts of a shard set, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_audio_train.samples import ChatRecord, PreferenceRecord, PretrainRecord, Record
from qwen_audio_train.shards.reader import ShardSet


def texts_of(folder: str) -> Iterator[str]:
    """Every text a model would read or write in the set of this folder."""
    shards = ShardSet.open(folder)
    for i in range(len(shards)):
        yield from _texts(shards.record(i))


def _texts(record: Record) -> Iterator[str]:
    if isinstance(record, PretrainRecord):
        yield record.text
    elif isinstance(record, ChatRecord):
        yield from _turns(record.messages)
    elif isinstance(record, PreferenceRecord):
        yield from (*_turns(record.messages), record.chosen, record.rejected)


def _turns(messages: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            yield content
        else:
            yield from (part["text"] for part in content if part["type"] == "text")
