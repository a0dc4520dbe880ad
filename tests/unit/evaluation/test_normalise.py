from __future__ import annotations

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.evaluation.normalise import characters, clean_up, has_unspoken_digits, normalise, words


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", " <|en|>Hello ,  world !", "Hello, world!"),
        ("fr", "Vraiment ?\tOui\n", "Vraiment? Oui "),
        ("zh", "<|zh|> 你 好 ， 世 界", "你好，世界"),
        ("yue", "你 好", "你 好"),
    ],
)
def test_clean_up(language: str, text: str, expected: str) -> None:
    assert clean_up(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "<|en|> Mr. Brown's colour is GREY, um, isn't it?", "mister brown is color is gray is not it"),
        ("en", "$2.50 for each, twenty five percent off!", "2 50 for each 25 off"),
        ("en", "PLEASE-ENTER your (beep) number.", "please enter your number"),
        ("fr", "<|fr|>L'eau est très « chaude » !", "l eau est très chaude"),
        ("fr", "Ça [bruit] va... ŒUVRE", "ça va œuvre"),
        ("it", "Qual è il n. 5?", "qual è il n 5"),
        ("ru", "Ёлка — моя!", "ёлка моя"),
        ("yue", "唔該, 漢語 OK!", "唔 该 汉 语 o k"),
        ("zh", "<|zh|>你好，世界 Hi！", "你 好 世 界 h i"),
        ("zh", "漢語《書》", "漢 語 書"),  # no conversion to simplified
        ("zh", "ＡＢ", "ａ ｂ"),  # no full-width conversion, but lower-casing
        ("zh", "你．好", "你 ． 好"),  # the full-width full stop is not in the list, and no token of its own
        ("en", "", ""),
        ("fr", "?! ...", ""),
    ],
)
def test_words(language: str, text: str, expected: str) -> None:
    assert words(text, language) == expected.split()


def test_tokens_of_punctuation_only_are_dropped() -> None:
    # An Arabic question mark is of category P but not among the characters that the Chinese rules make spaces.
    assert words("你，\u061f，好", "zh") == ["你", "好"]
    assert words("你\u061f", "zh") == ["你", "\u061f"]  # glued to a word it stays


def test_characters_count_single_spaces() -> None:
    assert "".join(characters("Où  est-il ?", "fr")) == "où est il"
    assert characters("你好，世界", "zh") == list("你好世界")


def test_chinese_digits_stay_and_are_told() -> None:
    assert normalise("第3章", "zh") == "第3章"
    assert has_unspoken_digits("第3章", "zh")
    assert has_unspoken_digits("第３章", "zh")
    assert not has_unspoken_digits("第三章", "zh")
    assert not has_unspoken_digits("3", "yue")


@pytest.mark.parametrize("language", ["en-US", "zh-CN", "cmn", "EN", "", "english"])
def test_a_code_that_would_fall_through_is_refused(language: str) -> None:
    with pytest.raises(ConfigError, match="not a code"):
        words("text", language)
