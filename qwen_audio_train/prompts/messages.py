"""Conversations as users write them, checked once and brought to one shape: turns of text and audio parts.

Nothing is mended silently, except that a conversation without a system turn gets the default one, as the chat template
of the released model does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_audio_train.errors import SampleError
from qwen_audio_train.samples import Origin

DEFAULT_SYSTEM: Final = "You are a helpful assistant."
ROLES: Final = ("system", "user", "assistant")
AUDIO: Final = None
"""Stands for one clip among the parts of a turn."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One checked turn. A part is a text, or ``AUDIO`` for the next clip of the conversation."""

    role: str
    parts: tuple[str | None, ...]

    @property
    def num_clips(self) -> int:
        return sum(part is AUDIO for part in self.parts)


class SpecialText:
    """Finds special tokens inside ordinary text, where they would change the structure of the conversation."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        longest_first = sorted(set(special_tokens), key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def refuse(self, text: str, where: str, origin: Origin) -> None:
        """Raise SampleError if ``text`` holds a special token."""
        found = self._pattern.search(text) if self._pattern else None
        if found:
            raise SampleError(
                origin,
                f"{where} contains the special token '{found.group()}' at character {found.start()}; texts are plain: "
                "give audio as {'type': 'audio'} parts and turns as messages",
            )


def checked_turns(
    messages: Sequence[Mapping[str, Any]], *, num_clips: int, special: SpecialText, origin: Origin
) -> tuple[Turn, ...]:
    """Check a conversation and return its turns, with the default system turn in front where there is none.

    Raises:
        SampleError: unknown role, turns out of order, malformed or empty content, special tokens in a text, or another
            number of audio parts than of clips.
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise SampleError(origin, "'messages' must be a list of at least one turn")
    turns = [_turn(message, f"messages[{index}]", special, origin) for index, message in enumerate(messages)]
    if turns[0].role != "system":
        turns.insert(0, Turn("system", (DEFAULT_SYSTEM,)))
    for index, turn in enumerate(turns[1:]):
        expected = ROLES[1 + index % 2]
        if turn.role != expected:
            raise SampleError(
                origin,
                f"turn {index + 1} after the system turn is of '{turn.role}', expected '{expected}': "
                "user and assistant alternate, the user begins, and only the first turn may be the system's",
            )
    if len(turns) == 1:
        raise SampleError(origin, "the conversation has no user turn")
    found = sum(turn.num_clips for turn in turns)
    if found != num_clips:
        raise SampleError(origin, f"messages hold {found} audio part(s) but the sample has {num_clips} clip(s)")
    return tuple(turns)


def require_answer(turns: Sequence[Turn], origin: Origin) -> None:
    """SFT learns from assistant turns: there must be one. Raises SampleError."""
    if not any(turn.role == "assistant" for turn in turns):
        raise SampleError(origin, "no assistant turn: nothing to learn from; end the conversation with an answer")


def require_open(turns: Sequence[Turn], origin: Origin) -> None:
    """A prompt must end with a user turn that waits for its answer. Raises SampleError."""
    if turns[-1].role != "user":
        raise SampleError(origin, f"the last turn is of '{turns[-1].role}', but a prompt must end with a user turn")


def _turn(message: Mapping[str, Any], where: str, special: SpecialText, origin: Origin) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise SampleError(origin, f"{where} must be an object with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise SampleError(origin, f"{where} has role {role!r}; known: {', '.join(ROLES)}")
    if isinstance(content, str):
        parts: tuple[str | None, ...] = (content,)
    elif isinstance(content, Sequence):
        parts = tuple(_part(part, f"{where}.content[{index}]", origin) for index, part in enumerate(content))
    else:
        raise SampleError(origin, f"{where}.content must be a string or a list of parts, got {type(content).__name__}")
    for part in parts:
        if part is not AUDIO:
            special.refuse(part, where, origin)
    if role == "assistant" and not any(part for part in parts):
        raise SampleError(origin, f"{where} is an empty answer; remove the turn or give it a text")
    if role == "assistant" and AUDIO in parts[next(i for i, part in enumerate(parts) if part) :]:
        # Text and the label "Audio k: " after it would be tokenised as one word, half of it supervised.
        raise SampleError(origin, f"{where} has audio after text; in an assistant turn audio comes first")
    if role == "user" and not any(part is AUDIO or part for part in parts):
        raise SampleError(origin, f"{where} is an empty user turn; give it a text or an audio part")
    return Turn(role, parts)


def _part(part: Any, where: str, origin: Origin) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "audio":
        return AUDIO
    if kind != "text":
        raise SampleError(
            origin, f"{where} must be {{'type': 'audio'}} or {{'type': 'text', 'text': ...}}, got {part!r}"
        )
    if not isinstance(part.get("text"), str):
        raise SampleError(origin, f"{where}.text must be a string, got {type(part.get('text')).__name__}")
    if "audio" in part or "audio_url" in part:
        # The chat template decides by key, so it would read this part as a clip.
        raise SampleError(origin, f"{where} is a text part that also holds 'audio'; make two parts of it")
    return str(part["text"])
