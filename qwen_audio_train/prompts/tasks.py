"""Pretraining tasks in natural language: which prompt follows the clip, and what the target begins with.

Where the one space stands: evaluation of the released base model appends `` <|en|>`` to the prompt, so a
language-tagged prompt ends with a single space and its target begins with the tag itself. The prompts of the other
tasks end with their last character, as in the official evaluation, and their target begins with the space.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts.wordings import LANGUAGE_TAGGED, LANGUAGES, WORDINGS

OFFICIAL_WORDING = 0
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """The text around a clip: ``prompt`` after it (never supervised) and what comes before the target's own text."""

    prompt: str
    target_tag: str | None
    """Language tag, the first target token; None for tasks without one."""
    target_lead: str
    """Text between tag and target: a space where there is no tag."""


def task_names() -> tuple[str, ...]:
    """Names that a record's ``task`` may take."""
    return tuple(WORDINGS)


def num_wordings(task: str) -> int:
    """How many wordings ``task`` has. Raises ConfigError for an unknown task."""
    return len(_wordings(task))


def language_name(code: str) -> str:
    """English name of an ISO code, as prompts spell it. Raises ConfigError for an unknown code."""
    if code not in LANGUAGES:
        raise ConfigError(
            f"language '{code}' has no name in prompts/wordings.py; known: {', '.join(sorted(LANGUAGES))}"
        )
    return LANGUAGES[code]


def language_tag(code: str) -> str:
    """The single special token that stands for a language, for instance ``<|en|>``."""
    language_name(code)
    return f"<|{code}|>"


def language_tags() -> tuple[str, ...]:
    """All language tags, in the order of wordings.py; add them to a tokenizer that lacks them."""
    return tuple(f"<|{code}|>" for code in LANGUAGES)


def task_prompt(
    task: str,
    *,
    audio_language: str,
    text_language: str,
    override: str | None = None,
    wording: int = OFFICIAL_WORDING,
) -> TaskPrompt:
    """Render the prompt of one task.

    ``override`` replaces the wording, except for tasks whose wordings hold ``{question}``: there it is the question.
    ``wording`` is taken modulo the number of wordings; 0 is the official one.

    Raises:
        ConfigError: unknown task or language, or a question without its text.
    """
    template = _wordings(task)[wording % len(_wordings(task))]
    if "{question}" in template:
        if not override:
            raise ConfigError(f"task '{task}' needs the question itself in the record's 'prompt', which is empty")
        text = template.replace("{question}", override)
    elif override is not None:
        text = override
    else:
        text = template.replace("{language}", language_name(text_language)) if "{language}" in template else template
    if task in LANGUAGE_TAGGED:
        return TaskPrompt(prompt=f"{text} ", target_tag=language_tag(audio_language), target_lead="")
    return TaskPrompt(prompt=text, target_tag=None, target_lead=" ")


def wording_choice(seed: int, epoch: int, sample: int) -> int:
    """A number for ``task_prompt(wording=...)`` that depends on nothing but its arguments."""
    state = 0
    for value in (seed, epoch, sample):
        state = _mix(state ^ (value & _MASK_64))
    return state >> 1


def _wordings(task: str) -> tuple[str, ...]:
    if task not in WORDINGS:
        raise ConfigError(f"task '{task}' is unknown; known: {', '.join(WORDINGS)} (add one in prompts/wordings.py)")
    return WORDINGS[task]


def _mix(value: int) -> int:
    """Finaliser of splitmix64: fixed by its definition, unlike the streams of random-number libraries."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
