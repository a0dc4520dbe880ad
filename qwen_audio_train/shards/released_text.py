"""Reading the texts of released corpora: tables, locales, full-width letters, and names of files that they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qwen_audio_train.errors import ConfigError

LANGUAGE_OF_LOCALE = {"zh-hk": "yue", "cmn": "zh", "nb": "no", "fil": "tl"}
"""Where the code that prompts use is not what the locale begins with."""
FULL_WIDTH_LETTERS = {
    code: code - 0xFEE0
    for first, last in (("\uff10", "\uff19"), ("\uff21", "\uff3a"), ("\uff41", "\uff5a"))
    for code in range(ord(first), ord(last) + 1)
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table."""

    number: int
    """Of the line, from 1."""
    fields: dict[str, str]
    problem: str | None
    """Set, and ``fields`` empty, where the line has another number of fields than the table has columns."""


def read_table(path: Path, columns: Sequence[str] | None = None, *, escapes: bool = False) -> Iterator[Row]:
    """Rows of a tab-separated table in which quotation marks mean nothing, in order.

    The csv module will not do: it joins lines at a lone quotation mark and fails at a carriage return inside a field.

    Args:
        columns: of a table without a header.
        escapes: a backslash makes the next character, also a tab, part of the field.

    Raises:
        ConfigError: not there, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.removesuffix("\n").removesuffix("\r")
                fields = _split_escaped(text) if escapes and "\\" in text else text.split("\t")
                if columns is None:
                    columns = fields
                    continue
                if not text:
                    continue
                if len(fields) == len(columns):
                    yield Row(number, dict(zip(columns, fields, strict=True)), None)
                else:
                    yield Row(number, {}, f"{path.name} line {number}: {len(fields)} fields, not {len(columns)}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}") from error


def language_of(locale: str) -> str:
    """ISO code, as prompts use it, of a locale such as ``zh-CN``, ``sv-SE`` or ``cmn_hans_cn``."""
    locale = locale.replace("_", "-").lower()
    first = locale.partition("-")[0]
    return LANGUAGE_OF_LOCALE.get(locale) or LANGUAGE_OF_LOCALE.get(first) or first


def half_width(text: str) -> str:
    """Full-width Latin letters and digits as ASCII; Chinese punctuation stays as it is."""
    return text.translate(FULL_WIDTH_LETTERS)


def locate(folder: Path, name: str) -> tuple[str, str | None]:
    """The path of a file that a corpus names, and what is wrong with the name: it must not lead out of ``folder``."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        return "", f"names {name!r}, which is not a file below '{folder}'"
    return str(folder / name), None


def _split_escaped(text: str) -> list[str]:
    fields = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            fields[-1] += next(characters, "")
        elif character == "\t":
            fields.append("")
        else:
            fields[-1] += character
    return fields
