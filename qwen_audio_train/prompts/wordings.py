"""Every wording a task prompt may take, and every language name: the one file to read or extend.

The first wording of a task is the released base model's, word for word, where it is public (Qwen2-Audio technical
report, figure 2, and the prompts of the official evaluation); it is what evaluation uses. The others are ours.
``{language}`` is the name of the target's language, ``{question}`` the record's own prompt.
"""

from __future__ import annotations

from typing import Final

LANGUAGES: Final[dict[str, str]] = {
    "en": "English",
    "zh": "Mandarin",
    "yue": "Cantonese",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "ru": "Russian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "cs": "Czech",
    "pl": "Polish",
    "pt": "Portuguese",
    "sv": "Swedish",
    "da": "Danish",
    "no": "Norwegian",
    "fi": "Finnish",
    "hu": "Hungarian",
    "ro": "Romanian",
    "el": "Greek",
    "uk": "Ukrainian",
    "tr": "Turkish",
    "ar": "Arabic",
    "he": "Hebrew",
    "fa": "Persian",
    "hi": "Hindi",
    "id": "Indonesian",
    "th": "Thai",
    "vi": "Vietnamese",
    "ca": "Catalan",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "cy": "Welsh",
    "et": "Estonian",
    "lv": "Latvian",
    "mn": "Mongolian",
    "sl": "Slovenian",
    "ta": "Tamil",
    "lt": "Lithuanian",
    "gl": "Galician",
    "sr": "Serbian",
}

WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    "transcribe": (
        "Detect the language and recognize the speech:",
        "Name the language, then write down what is said:",
        "Identify the spoken language and transcribe the recording:",
        "Which language is this? Give the language and the exact words:",
    ),
    "translate": (
        "Detect the language and translate the speech into {language}:",
        "Name the language, then say in {language} what is said:",
        "Identify the spoken language and give a {language} translation:",
        "Which language is this? Give the language and the words in {language}:",
    ),
    "emotion": (
        "Recognize the emotion with keywords in {language}:",
        "Name the speaker's emotion in {language}:",
        "How does the speaker feel? Answer with keywords in {language}:",
    ),
    "sentiment": (
        "Recognize the sentiment with keywords in {language}:",
        "Name the sentiment of the speech in {language}:",
        "Is the speaker's attitude positive, neutral or negative? Answer with keywords in {language}:",
    ),
    "vocal_sound": (
        "Classify the human vocal sound to VocalSound in {language}:",
        "Name the sound that the person makes in {language}:",
        "Which human vocal sound is heard? Answer with keywords in {language}:",
    ),
    # Ours: which words stood for sound events in general is not public.
    "sound": (
        "Classify the sound in {language}:",
        "Name the sound that is heard in {language}:",
        "What makes this sound? Answer with keywords in {language}:",
    ),
    # No official wording is public for captions of other kinds and for questions.
    "caption": (
        "Generate the caption in {language}:",
        "Describe what is heard in one {language} sentence:",
        "Write a {language} caption for this recording:",
    ),
    "question": (
        "{question}",
        "{question} The answer is:",
        "Listen, then answer the question. {question}",
    ),
}

LANGUAGE_TAGGED: Final[frozenset[str]] = frozenset({"transcribe", "translate"})
"""Tasks whose target begins with the tag of the language that is spoken."""
