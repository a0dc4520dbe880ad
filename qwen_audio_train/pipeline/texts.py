"""The texts of a shard set, for training a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.errors import SampleError
from qwen_audio_train.prompts import chat_forms
from qwen_audio_train.prompts.messages import DEFAULT_SYSTEM, ROLES
from qwen_audio_train.prompts.tasks import task_prompt
from qwen_audio_train.prompts.wordings import LANGUAGES
from qwen_audio_train.samples import ChatRecord, PreferenceRecord, PretrainRecord, Record
from qwen_audio_train.shards.reader import ShardSet

logger = logging.getLogger(__name__)


def texts_of(location: str, *, remote: RemoteConfig | None = None) -> Iterator[str]:
    """Every text a model would read or write in the set of this folder or URL."""
    shards = ShardSet.open(location, remote=remote)
    for i in range(len(shards)):
        try:
            record = shards.record(i)
        except SampleError as error:
            logger.warning("Its texts are not read: %s", error)  # training quarantines it
            continue
        yield from _texts(record)


def fixed_phrases() -> list[str]:
    """Text that stands around every sample: official task prompts, ChatML's own words, chat instructions.

    A vocabulary of characters would spend most of its tokens on them.
    """
    asked = [
        task_prompt(task, audio_language="en", text_language=language).prompt
        for task, language in (("transcribe", "en"), *(("translate", code) for code in LANGUAGES))
    ]
    chat = [f"{role}\n" for role in ROLES] + [DEFAULT_SYSTEM, *(f"Audio {k}: " for k in range(1, 4))]
    wordings = (*chat_forms.LANGUAGE_QUESTIONS, *chat_forms.TRANSCRIBE_INSTRUCTIONS)
    translations = [
        chat_forms.translate_instruction(choice, "en") for choice in range(len(chat_forms.TRANSLATE_INSTRUCTIONS))
    ]
    return list(dict.fromkeys([*asked, *chat, *wordings, *translations]))


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
