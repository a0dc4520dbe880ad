"""Whether chat answers have the right form in both interaction modes, which the model must tell apart by itself.

Form only: a voice chat reply that misheard every word still has the right form. Whether the words are right is what the
error rates say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from qwen_audio_train.prompts.chat_forms import parse_language_answer, voice_chat_text


class Question(Enum):
    """What the user turn asks for. ``voice_chat`` is audio only; the others are audio plus an instruction."""

    voice_chat = "voice_chat"
    language = "language"
    transcribe = "transcribe"
    translate = "translate"


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One generated answer and what is needed to judge its form."""

    question: Question
    clip_language: str
    answer: str
    """Decoded without special tokens."""
    ended: bool
    """The model closed its answer with the end token (rather than running into the length limit)."""


@dataclass(frozen=True, slots=True)
class FormShares:
    """Shares of answers of the right form; None where no such question was asked."""

    analysis: float | None
    voice_chat: float | None


def has_right_form(given: ChatAnswer) -> bool:
    """An answer that never ended is of no form.

    Voice chat: the template of the clip's own language. Language question: the sentence that names a language.
    Transcript and translation: some text that is neither of these.
    """
    if not given.ended:
        return False
    heard = voice_chat_text(given.answer)
    match given.question:
        case Question.voice_chat:
            return heard is not None and heard[0] == given.clip_language
        case Question.language:
            return parse_language_answer(given.answer) is not None
        case Question.transcribe | Question.translate:
            return bool(given.answer.strip()) and heard is None and parse_language_answer(given.answer) is None


def form_shares(answers: Iterable[ChatAnswer]) -> FormShares:
    analysis: list[bool] = []
    voice_chat: list[bool] = []
    for given in answers:
        verdicts = voice_chat if given.question is Question.voice_chat else analysis
        verdicts.append(has_right_form(given))
    return FormShares(_share(analysis), _share(voice_chat))


def _share(verdicts: list[bool]) -> float | None:
    return sum(verdicts) / len(verdicts) if verdicts else None
