from __future__ import annotations

import pytest

from qwen_audio_train.evaluation.forms import ChatAnswer, FormShares, Question, form_shares, has_right_form
from qwen_audio_train.prompts.chat_forms import language_answer, voice_chat_answer

REPLY_FR = voice_chat_answer("fr", "allez-y")
REPLY_EN = voice_chat_answer("en", "go on")
NAMED = language_answer("fr")


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (Question.voice_chat, REPLY_FR, True),
        (Question.voice_chat, " " + REPLY_FR + "\n", True),
        (Question.voice_chat, REPLY_EN, False),
        (Question.voice_chat, REPLY_FR + " Bien.", False),
        (Question.voice_chat, "allez-y", False),
        (Question.voice_chat, NAMED, False),
        (Question.voice_chat, "", False),
        (Question.language, NAMED, True),
        (Question.language, language_answer("ru"), True),  # wrong, but of the right form
        (Question.language, "The language is Klingon.", False),
        (Question.language, "French", False),
        (Question.language, REPLY_FR, False),
        (Question.transcribe, "allez-y", True),
        (Question.transcribe, REPLY_FR, False),
        (Question.transcribe, REPLY_EN, False),
        (Question.transcribe, NAMED, False),
        (Question.transcribe, " \n", False),
        (Question.translate, "go on", True),
        (Question.translate, NAMED, False),
        (Question.translate, REPLY_FR, False),
        (Question.translate, "", False),
    ],
)
def test_right_form(question: Question, answer: str, right: bool) -> None:
    assert has_right_form(ChatAnswer(question, "fr", answer, ended=True)) is right
    assert not has_right_form(ChatAnswer(question, "fr", answer, ended=False))


def test_shares() -> None:
    answers = [
        ChatAnswer(Question.voice_chat, "fr", REPLY_FR, True),
        ChatAnswer(Question.voice_chat, "en", REPLY_FR, True),
        ChatAnswer(Question.language, "fr", NAMED, True),
        ChatAnswer(Question.transcribe, "fr", "allez-y", True),
        ChatAnswer(Question.transcribe, "fr", "allez-y allez-y", False),
        ChatAnswer(Question.translate, "fr", "", True),
    ]
    assert form_shares(answers) == FormShares(analysis=2 / 4, voice_chat=1 / 2)
    assert form_shares(answers[:1]) == FormShares(analysis=None, voice_chat=1.0)
