"""The wording of the rule-made chat data: one place for the tool that writes it and the check that recognises it.

Two interaction modes, no mode tag. *Voice chat*: the user turn is audio only, and the assistant replies in the spoken
language by a fixed template that repeats what it heard. *Audio analysis*: audio plus a written instruction, which asks
for the language, the transcript or a translation.

Strings and regular expressions only, so that data preparation can use it without a training stack.
"""

from __future__ import annotations

import re

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts.tasks import language_name
from qwen_audio_train.prompts.wordings import LANGUAGES

VOICE_CHAT_TEMPLATES = {
    "en": 'I heard: "{text}" How can I help?',
    "es": "He oído: «{text}» ¿En qué puedo ayudar?",
    "fr": "J'ai entendu : « {text} » Comment puis-je aider ?",
    "it": "Ho sentito: «{text}» Come posso aiutare?",
    "ru": "Я услышал: «{text}» Чем могу помочь?",
}

LANGUAGE_QUESTIONS = (
    "Which language is spoken?",
    "What language is the speaker using?",
    "Name the language of this recording.",
    "Can you tell me which language this is?",
    "In which language does this person speak?",
    "Identify the spoken language.",
)

TRANSCRIBE_INSTRUCTIONS = (
    "Transcribe the recording.",
    "Write down what is said.",
    "What exactly does the speaker say?",
    "Give me the words of this clip as text.",
    "Please turn this speech into text, in its own language.",
    "Note down the spoken words.",
)

TRANSLATE_INSTRUCTIONS = (
    "Translate the speech into {target}.",
    "What does the speaker say, in {target}?",
    "Give me the meaning of this recording in {target}.",
    "Say in {target} what you hear.",
    "Please write a translation of this clip into {target}.",
    "How would this be put in {target}?",
)

_LANGUAGE_ANSWER = "The language is {name}."
_LANGUAGE_ANSWER_PATTERN = re.compile(r"The language is (\w+)\.")
_CODES = {name: code for code, name in LANGUAGES.items()}
_VOICE_CHAT_PATTERNS = {
    language: re.compile(re.escape(template).replace(re.escape("{text}"), "(.+)"))
    for language, template in VOICE_CHAT_TEMPLATES.items()
}


def voice_chat_answer(language: str, text: str) -> str:
    """The assistant's reply to a user turn of audio only. Raises ConfigError where the language has no template."""
    if language not in VOICE_CHAT_TEMPLATES:
        raise ConfigError(
            f"voice chat: no reply template for language '{language}'; there are {', '.join(VOICE_CHAT_TEMPLATES)}: "
            "leave this language out of the voice chat data or add its template to prompts/chat_forms.py"
        )
    if not text.strip() or "\n" in text:
        raise ConfigError(f"voice chat: the heard text must be one non-empty line, got {text!r}")
    return VOICE_CHAT_TEMPLATES[language].replace("{text}", text)


def voice_chat_text(answer: str) -> tuple[str, str] | None:
    """The language and the heard text of a voice chat reply; None where the answer follows no template."""
    for language, pattern in _VOICE_CHAT_PATTERNS.items():
        match = pattern.fullmatch(answer.strip())
        if match and match[1].strip():
            return language, match[1]
    return None


def language_answer(language: str) -> str:
    """``The language is French.`` Raises ConfigError for a code without a name."""
    return _LANGUAGE_ANSWER.format(name=language_name(language))


def parse_language_answer(answer: str) -> str | None:
    """The code of the language that an answer names; None where the answer is not of the form or names none we know."""
    match = _LANGUAGE_ANSWER_PATTERN.fullmatch(answer.strip())
    return _CODES.get(match[1]) if match else None


def language_question(choice: int) -> str:
    """One of the wordings; ``choice`` is any integer, for instance a hash of the sample's key."""
    return LANGUAGE_QUESTIONS[choice % len(LANGUAGE_QUESTIONS)]


def transcribe_instruction(choice: int) -> str:
    return TRANSCRIBE_INSTRUCTIONS[choice % len(TRANSCRIBE_INSTRUCTIONS)]


def translate_instruction(choice: int, target_language: str) -> str:
    wording = TRANSLATE_INSTRUCTIONS[choice % len(TRANSLATE_INSTRUCTIONS)]
    return wording.format(target=language_name(target_language))
