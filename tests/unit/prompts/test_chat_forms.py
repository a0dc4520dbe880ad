from __future__ import annotations

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts import chat_forms
from qwen_audio_train.prompts.wordings import LANGUAGES

TEXTS = ["hello", 'he said "no" (twice)', "«oui» : non ?", "\\d+ {text} $1 .*", "5"]


@pytest.mark.parametrize("language", chat_forms.VOICE_CHAT_TEMPLATES)
@pytest.mark.parametrize("text", TEXTS)
def test_voice_chat_reads_back_what_it_wrote(language: str, text: str) -> None:
    assert chat_forms.voice_chat_text(chat_forms.voice_chat_answer(language, text)) == (language, text)


def test_voice_chat_wording() -> None:
    assert chat_forms.voice_chat_answer("en", "Hi.") == 'I heard: "Hi." How can I help?'
    assert chat_forms.voice_chat_answer("fr", "Oui.") == "J'ai entendu : « Oui. » Comment puis-je aider ?"


@pytest.mark.parametrize(
    "answer",
    ["", "Hi.", 'I heard: "" How can I help?', 'I heard: "a" How can I help', 'Well, I heard: "a" How can I help?'],
)
def test_other_answers_are_no_voice_chat(answer: str) -> None:
    assert chat_forms.voice_chat_text(answer) is None


@pytest.mark.parametrize(("language", "text"), [("nl", "hallo"), ("en", ""), ("en", " "), ("en", "a\nb")])
def test_voice_chat_refuses_what_it_could_not_read_back(language: str, text: str) -> None:
    with pytest.raises(ConfigError):
        chat_forms.voice_chat_answer(language, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_answers_read_back(language: str) -> None:
    assert chat_forms.parse_language_answer(chat_forms.language_answer(language)) == language


@pytest.mark.parametrize(
    "answer", ["French", "The language is French", "The language is Klingon.", "the language is French."]
)
def test_other_answers_name_no_language(answer: str) -> None:
    assert chat_forms.parse_language_answer(answer) is None


def test_unnamed_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="tlh"):
        chat_forms.language_answer("tlh")


def test_wordings_are_several_and_distinct() -> None:
    groups = [
        chat_forms.LANGUAGE_QUESTIONS,
        chat_forms.TRANSCRIBE_INSTRUCTIONS,
        chat_forms.TRANSLATE_INSTRUCTIONS,
    ]
    everything = [wording for group in groups for wording in group]
    assert all(len(group) >= 5 for group in groups)
    assert len(set(everything)) == len(everything)


def test_instructions_take_any_integer() -> None:
    assert chat_forms.language_question(-1) == chat_forms.LANGUAGE_QUESTIONS[-1]
    assert chat_forms.transcribe_instruction(6) == chat_forms.TRANSCRIBE_INSTRUCTIONS[0]
    assert chat_forms.translate_instruction(10**12, "en").count("English") == 1
