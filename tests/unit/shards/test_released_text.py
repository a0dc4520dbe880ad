from __future__ import annotations

from pathlib import Path

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.released_text import half_width, language_of, locate, read_table


def table(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "table.tsv"
    path.write_bytes(data)
    return path


def test_reads_fields_as_they_are(tmp_path: Path) -> None:
    path = table(tmp_path, b'\xef\xbb\xbfa\tb\r\n"x\ty"\r\n\n\xe2\x80\xa8\t\\t\n1\t2\t3\n')
    rows = list(read_table(path))
    assert [row.fields for row in rows] == [{"a": '"x', "b": 'y"'}, {"a": "\u2028", "b": "\\t"}, {}]
    assert [row.number for row in rows] == [2, 4, 5]
    assert rows[2].problem == "table.tsv line 5: 3 fields, not 2"


def test_a_backslash_takes_the_next_character(tmp_path: Path) -> None:
    path = table(tmp_path, b'\\"x\\\ty\t\\\\\nonly\\\tone\nend\tx\\\n')
    rows = list(read_table(path, ("a", "b"), escapes=True))
    assert [row.fields for row in rows] == [{"a": '"x\ty', "b": "\\"}, {}, {"a": "end", "b": "x"}]


def test_says_which_table_is_bad(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.tsv' cannot be read"):
        list(read_table(tmp_path / "missing.tsv"))
    with pytest.raises(ConfigError, match=r"table.tsv' cannot be read.*utf-8"):
        list(read_table(table(tmp_path, b"a\tb\n\xff\t\n")))


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("en", "en"),
        ("zh-CN", "zh"),
        ("zh-HK", "yue"),
        ("sv-SE", "sv"),
        ("cmn_hans_cn", "zh"),
        ("yue_hant_hk", "yue"),
        ("nb_no", "no"),
    ],
)
def test_language_of_a_locale(locale: str, language: str) -> None:
    assert language_of(locale) == language


def test_only_letters_and_digits_become_half_width() -> None:
    assert half_width("\uff21\uff5a\uff10，。！中") == "Az0，。！中"


@pytest.mark.parametrize("name", ["../x.wav", "/x.wav", "a/../../x.wav", ""])
def test_a_file_lies_below_its_corpus(tmp_path: Path, name: str) -> None:
    assert "not a file below" in str(locate(tmp_path, name)[1])
    assert locate(tmp_path, "a/x.wav") == (str(tmp_path / "a/x.wav"), None)
