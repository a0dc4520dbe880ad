"""What we assume of the packages behind the error rates; expected strings by hand from the published rules."""

from __future__ import annotations

import hashlib
import inspect
import json

import pytest
import zhconv
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from whisper_normalizer.basic import BasicTextNormalizer as PackagedBasic
from whisper_normalizer.english import EnglishSpellingNormalizer
from whisper_normalizer.english import EnglishTextNormalizer as PackagedEnglish

# Of the english.json that openai-whisper 20250625 ships, its keys sorted.
SPELLINGS = 1739
SPELLINGS_SHA256 = "a9514fed7a5a462d97b9a7a2f93d38e7ec098ad2dd4171096b9d9e7b2a8ccdec"


@pytest.fixture(scope="module")
def english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bonjour, l'\u00e9t\u00e9 [rire] est L\u00c0!", "bonjour l \u00e9t\u00e9 est l\u00e0 "),
        ("a <b> c (d) e", "a c e"),
        ("\uff21\uff22\uff23 \ufb01n", "abc fin"),  # NFKC: full-width letters, ligature
        ("e\u0301", "\u00e9"),  # a combining accent is composed before marks are removed
        ("x\u0301y", "x y"),  # one that has no composed form is a mark: a space
        ("$5 + 3%", " 5 3 "),
    ],
)
def test_basic_rules_and_both_packages_agree(text: str, expected: str) -> None:
    assert BasicTextNormalizer()(text) == expected
    assert PackagedBasic()(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Um, I won't uh go, hmm.", "i will not go"),
        ("Mr. Smith's dr said he'd been late", "mister smith is doctor said he had been late"),
        ("one thousand two hundred and five", "1205"),
        ("twenty-first", "21st"),
        ("1,000,000 dollars", "$1000000"),
        ("five per cent of $20 million", "5% of $20000000"),
        ("3.5 metres. Colour, realise", "3.5 meters color realize"),
        ("na\u00efve caf\u00e9 (noise) [music]", "naive cafe"),
        ("two oh one", "201"),
        ("it 's fine", "it is fine"),
    ],
)
def test_english_rules(english: EnglishTextNormalizer, text: str, expected: str) -> None:
    assert english(text) == expected


def test_english_keeps_words_that_later_rules_rewrite(english: EnglishTextNormalizer) -> None:
    # OpenAI's rules have no such entries; whisper_normalizer added them, which is why its rules are not used.
    assert english("kinda sorta dunno cause") == "kinda sorta dunno cause"
    assert PackagedEnglish()("kinda cause") != "kinda cause"


def test_spelling_table_is_openais() -> None:
    mapping = EnglishSpellingNormalizer().mapping
    assert len(mapping) == SPELLINGS
    digest = hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()
    assert digest == SPELLINGS_SHA256


def test_basic_defaults_keep_diacritics() -> None:
    assert inspect.signature(BasicTextNormalizer).parameters["remove_diacritics"].default is False


def test_zhconv_knows_simplified() -> None:
    assert zhconv.convert("\u6f22\u8a9e \u5514\u8a72 ABC", "zh-cn") == "\u6c49\u8bed \u5514\u8be5 ABC"
