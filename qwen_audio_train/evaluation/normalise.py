"""Text to the items that an error rate counts, step for step as Qwen2-Audio's own evaluation does it.

Clean up tags and spaces, normalise for the language, drop tokens of punctuation only, lower-case, split; Chinese and
Cantonese are split to characters. Reference and hypothesis go through the same steps.

| language | normaliser                                             |
|----------|--------------------------------------------------------|
| en       | Whisper English, then Whisper Basic                    |
| zh       | punctuation to spaces (see ``normalise`` on numbers)   |
| yue      | traditional to simplified (zh-cn), then Whisper Basic  |
| others   | Whisper Basic; diacritics are kept and so are scored   |

The English rules come from transformers, its spelling table from whisper_normalizer: together they are what OpenAI
publishes. The rules of whisper_normalizer itself have since grown ("kinda" -> "kind of", "cause" -> "because"), which
would make rates incomparable. tests/contract/test_normalisers.py holds both facts.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import zhconv
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from whisper_normalizer.english import EnglishSpellingNormalizer

from qwen_audio_train.errors import ConfigError

CHARACTER_LANGUAGES = frozenset({"zh", "yue"})
"""Written without spaces: an 'error rate of words' of these languages counts characters."""

_AMBIGUOUS_CODES = frozenset({"cmn", "chi", "zho", "eng", "fra", "fre"})
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")

# ASCII punctuation and symbols, then the CJK ones. U+FF0E (full-width full stop) is missing from the original list.
_CHINESE_PUNCTUATION_RANGES = (
    (0x0021, 0x002F),
    (0x003A, 0x0040),
    (0x005B, 0x0060),
    (0x007B, 0x007E),
    (0x00B7, 0x00B7),
    (0x2013, 0x2014),
    (0x2018, 0x2019),
    (0x201B, 0x201F),
    (0x2026, 0x2027),
    (0x3001, 0x3003),
    (0x3008, 0x3011),
    (0x3014, 0x301F),
    (0x3030, 0x3030),
    (0x303E, 0x303F),
    (0xFE4F, 0xFE4F),
    (0xFF01, 0xFF0D),
    (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF64),
)
_CHINESE_PUNCTUATION_TO_SPACE = {
    point: " " for first, last in _CHINESE_PUNCTUATION_RANGES for point in range(first, last + 1)
}

_basic = BasicTextNormalizer()


@cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)


def clean_up(text: str, language: str) -> str:
    """Spans ``<|...|>`` to a space, whitespace runs to one space, no space before ``!,.?;:``, no leading space.

    Chinese (``zh``, not ``yue``) loses all its whitespace.
    """
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([!,.?;:])", r"\1", text)
    text = text.lstrip(" ")
    return re.sub(r"\s+", "", text) if language == "zh" else text


def normalise(text: str, language: str) -> str:
    """The language's normaliser on cleaned-up text. Raises ConfigError for a code such as ``en-US`` or ``cmn``.

    Chinese: the original also spells number-like text in Chinese words (dates, money, telephone numbers, fractions,
    percentages, quantities, digit runs, decimals) before it removes punctuation. No maintained package does the same,
    so numbers stay digits here, and ``has_unspoken_digits`` lets a score say how many of its texts that touches. On
    texts without digits the result is the original's.
    """
    check_language(language)
    if language == "zh":
        return text.translate(_CHINESE_PUNCTUATION_TO_SPACE)
    if language == "en":
        text = _english()(text)
    elif language == "yue":
        text = zhconv.convert(text, "zh-cn")
    return str(_basic(text))


def words(text: str, language: str) -> list[str]:
    """What a word error rate counts: words, or characters in Chinese and Cantonese (Latin words are spelled out)."""
    normalised = normalise(clean_up(text, language), language)
    tokens = [token for token in normalised.split(" ") if not _is_punctuation(token)]
    items = " ".join(tokens).lower().split()
    return list("".join(items)) if language in CHARACTER_LANGUAGES else items


def characters(text: str, language: str) -> list[str]:
    """What a character error rate counts: the characters of the normalised words joined by single spaces.

    A space counts as a character (so a word wrongly cut in two costs one edit), as in jiwer's ``cer``. Chinese and
    Cantonese have no spaces, so there ``characters`` equals ``words``.
    """
    separator = "" if language in CHARACTER_LANGUAGES else " "
    return list(separator.join(words(text, language)))


def has_unspoken_digits(text: str, language: str) -> bool:
    """Whether the original pipeline could have spelled out a number here that ours leaves as digits."""
    return language == "zh" and any(character.isdigit() for character in text)


def check_language(language: str) -> None:
    """Two or three lower-case letters. A wrong code would silently fall through to the rules of 'all others'."""
    if not _LANGUAGE_CODE.fullmatch(language) or language in _AMBIGUOUS_CODES:
        raise ConfigError(
            f"evaluation: language '{language}' is not a code the normalisers know: write two or three lower-case "
            "letters without region, for instance en, fr, zh (Mandarin) or yue (Cantonese)"
        )


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in token)
