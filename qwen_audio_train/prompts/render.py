"""Records to token ids, from text and audio lengths alone: no audio is read.

The ids are those that the processor's chat template and its audio expansion give, with one deliberate difference in
how they are made: prompt and answer are tokenised apart, so that training sees exactly the ids that generation will
see. For byte-level BPE the two agree, except where an answer's leading white space holds a line break
(``"\\n\\nYes"``): there the processor would merge it with the line break after ``assistant`` into one token, which no
generated answer can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from qwen_audio_train.audio.lengths import MAX_CLIP_SAMPLES, MAX_CLIP_SECONDS, MIN_CLIP_SAMPLES, audio_tokens
from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.prompts.messages import AUDIO, SpecialText, Turn, checked_turns, require_answer, require_open
from qwen_audio_train.prompts.tasks import OFFICIAL_WORDING, TaskPrompt, language_tag, num_wordings, task_prompt
from qwen_audio_train.samples import (
    TEXT_TASK,
    ChatRecord,
    Origin,
    PreferenceRecord,
    PretrainRecord,
    Record,
    Rendered,
    RenderedPair,
)

AUDIO_TOKEN: Final = "<|AUDIO|>"  # noqa: S105
AUDIO_BOS: Final = "<|audio_bos|>"
AUDIO_EOS: Final = "<|audio_eos|>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
END_OF_TEXT: Final = "<|endoftext|>"
REQUIRED_TOKENS: Final = (AUDIO_BOS, AUDIO_TOKEN, AUDIO_EOS, IM_START, IM_END, END_OF_TEXT)

_NOWHERE: Final = Origin(dataset="-", shard="-", key="-")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text to be tokenised by itself, or ``repeat`` copies of one special token."""

    text: str
    repeat: int = 0
    """0 for ordinary text."""
    supervised: bool = False


_Script = list[_Piece]


class Renderer:
    """Renders records with one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer that has REQUIRED_TOKENS as single tokens.

    Raises:
        ConfigError: special tokens are missing; all of them are listed.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError("prompts need a fast tokenizer (one with a tokenizer.json), got a slow one")
        self._backend = tokenizer.backend_tokenizer
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._special_ids: dict[str, int] = {str(token): index for index, token in added.items() if token.special}
        missing = [token for token in REQUIRED_TOKENS if token not in self._special_ids]
        if missing:
            raise ConfigError(
                f"the tokenizer lacks the special token(s) {', '.join(missing)}; "
                "add them with model.build_from_parts, or use the folder it saved"
            )
        self._special = SpecialText(self._special_ids)

    def render_pretrain(self, record: PretrainRecord, wording: int = OFFICIAL_WORDING) -> Rendered:
        """Clip, task prompt, target and end token; the target (language tag included) and the end are supervised.

        Plain text (``TEXT_TASK``) stands between two end tokens, behind its prompt if it has one.

        Raises:
            SampleError: unknown task or language, a clip too short or too long, not exactly one clip (none for plain
                text), special tokens in a text, an empty target.
        """
        return self._rendered([self._pretrain(record, wording)])[0]

    def render_pretrain_prompt(
        self, record: PretrainRecord, wording: int = OFFICIAL_WORDING, forced_language: str | None = None
    ) -> Rendered:
        """What generation starts from. ``forced_language`` appends its tag, as the official evaluation does."""
        if record.task == TEXT_TASK:
            return self._rendered([self._text_prompt(record)])[0]
        script, _ = self._pretrain_prompt(record, wording)
        if forced_language is not None:
            script.append(_Piece(self._tag(language_tag(forced_language), record.origin), repeat=1))
        return self._rendered([script])[0]

    def longest_wording(self, record: PretrainRecord) -> int:
        """The wording with the most tokens: lengths measured with it hold for whichever wording an epoch draws."""
        if record.task == TEXT_TASK:
            return OFFICIAL_WORDING
        count = num_wordings(record.task)
        prompts = [_task_prompt(record, wording).prompt for wording in range(count)]
        lengths = [len(encoding.ids) for encoding in self._backend.encode_batch(prompts, add_special_tokens=False)]
        return lengths.index(max(lengths))

    def render_chat(self, record: ChatRecord) -> Rendered:
        """A whole conversation; the text of every assistant turn and its ``<|im_end|>`` are supervised.

        Raises:
            SampleError: see ``messages.checked_turns``; also if no assistant turn is there.
        """
        return self._rendered([self._chat(record)])[0]

    def render_chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], clip_num_samples: Sequence[int], origin: Origin = _NOWHERE
    ) -> Rendered:
        """A conversation that ends with a user turn, and the generation prompt. ``clip_num_samples`` at 16 kHz."""
        return self._rendered([self._chat_prompt(messages, clip_num_samples, origin)])[0]

    def render_preference(self, record: PreferenceRecord) -> RenderedPair:
        """One prompt and two answers, each with its ``<|im_end|>``.

        Raises:
            SampleError: as ``render_chat``; also if an answer is empty or both are equal.
        """
        return self._pairs([self._preference(record)])[0]

    def render_many(
        self, records: Sequence[Record], wordings: Sequence[int] | None = None
    ) -> list[Rendered | RenderedPair]:
        """As the methods above, record by record, with one call to the tokenizer: some 10 times faster.

        ``wordings`` has one entry a record and concerns pretraining records only; None means the official wording.
        """
        chosen = wordings if wordings is not None else [OFFICIAL_WORDING] * len(records)
        scripts: list[_Script] = []
        spans: list[int] = []
        for record, wording in zip(records, chosen, strict=True):
            if isinstance(record, PreferenceRecord):
                parts = list(self._preference(record))
            elif isinstance(record, ChatRecord):
                parts = [self._chat(record)]
            else:
                assert isinstance(record, PretrainRecord), type(record)
                parts = [self._pretrain(record, wording)]
            scripts.extend(parts)
            spans.append(len(parts))
        rendered = iter(self._rendered(scripts))
        return [
            next(rendered) if span == 1 else _pair(next(rendered), next(rendered), next(rendered)) for span in spans
        ]

    def _pretrain(self, record: PretrainRecord, wording: int) -> _Script:
        if not record.text.strip():
            raise SampleError(record.origin, "'text' is empty: nothing to learn from")
        self._special.refuse(record.text, "'text'", record.origin)
        if record.task == TEXT_TASK:
            target = [_Piece(record.text, supervised=True), _Piece(END_OF_TEXT, repeat=1, supervised=True)]
            return [*self._text_prompt(record), *target]
        script, task = self._pretrain_prompt(record, wording)
        if task.target_tag is not None:
            script.append(_Piece(self._tag(task.target_tag, record.origin), repeat=1, supervised=True))
        script.append(_Piece(task.target_lead + record.text, supervised=True))
        script.append(_Piece(END_OF_TEXT, repeat=1, supervised=True))
        return script

    def _text_prompt(self, record: PretrainRecord) -> _Script:
        """An end token in front, as between the documents of text pretraining: it makes the first token a target."""
        if record.clips:
            raise SampleError(record.origin, f"task '{TEXT_TASK}' has no clips, this one has {len(record.clips)}")
        self._special.refuse(record.prompt or "", "'prompt'", record.origin)
        return [_Piece(END_OF_TEXT, repeat=1), _Piece(record.prompt or "")]

    def _pretrain_prompt(self, record: PretrainRecord, wording: int) -> tuple[_Script, TaskPrompt]:
        if len(record.clips) != 1:
            raise SampleError(record.origin, f"a pretraining sample has one clip, this one has {len(record.clips)}")
        task = _task_prompt(record, wording)
        self._special.refuse(task.prompt, "'prompt'", record.origin)
        num_tokens = _clip_tokens(record.clips[0].num_samples, 0, record.origin)
        return [*_audio(num_tokens), _Piece(task.prompt)], task

    def _tag(self, tag: str, origin: Origin) -> str:
        if tag not in self._special_ids:
            raise SampleError(
                origin, f"the tokenizer has no language tag '{tag}'; add prompts.tasks.language_tags() to it"
            )
        return tag

    def _chat(self, record: ChatRecord) -> _Script:
        turns = checked_turns(record.messages, num_clips=len(record.clips), special=self._special, origin=record.origin)
        require_answer(turns, record.origin)
        return _turns(turns, [clip.num_samples for clip in record.clips], record.origin)

    def _chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], clip_num_samples: Sequence[int], origin: Origin
    ) -> _Script:
        turns = checked_turns(messages, num_clips=len(clip_num_samples), special=self._special, origin=origin)
        require_open(turns, origin)
        script = [*_turns(turns, clip_num_samples, origin), _Piece(IM_START, repeat=1), _Piece("assistant\n")]
        # Earlier answers are part of the prompt here, not targets.
        return [replace(piece, supervised=False) for piece in script]

    def _preference(self, record: PreferenceRecord) -> tuple[_Script, _Script, _Script]:
        for name, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
            if not answer:
                raise SampleError(record.origin, f"'{name}' is empty")
            self._special.refuse(answer, f"'{name}'", record.origin)
        if record.chosen == record.rejected:
            raise SampleError(record.origin, f"'chosen' and 'rejected' are both {record.chosen!r}: no preference")
        prompt = self._chat_prompt(record.messages, [clip.num_samples for clip in record.clips], record.origin)
        end = _Piece(IM_END, repeat=1, supervised=True)
        return prompt, [_Piece(record.chosen, supervised=True), end], [_Piece(record.rejected, supervised=True), end]

    def _pairs(self, scripts: Sequence[tuple[_Script, _Script, _Script]]) -> list[RenderedPair]:
        return [_pair(*self._rendered(parts)) for parts in scripts]

    def _rendered(self, scripts: Sequence[_Script]) -> list[Rendered]:
        texts = list(dict.fromkeys(piece.text for script in scripts for piece in script if not piece.repeat))
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        ids_of = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        return [self._assembled(script, ids_of) for script in scripts]

    def _assembled(self, script: _Script, ids_of: Mapping[str, list[int]]) -> Rendered:
        ids: list[int] = []
        supervised: list[bool] = []
        for piece in script:
            piece_ids = [self._special_ids[piece.text]] * piece.repeat if piece.repeat else ids_of[piece.text]
            ids.extend(piece_ids)
            supervised.extend([piece.supervised] * len(piece_ids))
        return Rendered(
            input_ids=np.array(ids, dtype=np.int32),
            supervised=np.array(supervised, dtype=np.bool_),
            clip_tokens=tuple(piece.repeat for piece in script if piece.repeat and piece.text == AUDIO_TOKEN),
        )


def _turns(turns: Sequence[Turn], clip_num_samples: Sequence[int], origin: Origin) -> _Script:
    """ChatML. Text between two special tokens is one piece, save that an answer is a piece of its own."""
    script: _Script = []
    clip = 0
    for turn in turns:
        answers = turn.role == "assistant"
        plain, answer = f"{turn.role}\n", ""
        script.append(_Piece(IM_START, repeat=1))
        for part in turn.parts:
            if part is AUDIO:
                script.append(_Piece(f"{plain}Audio {clip + 1}: "))
                script.extend(_audio(_clip_tokens(clip_num_samples[clip], clip, origin)))
                plain = "\n"
                clip += 1
            elif answers:
                answer += part
            else:
                plain += part
        script.append(_Piece(plain))
        script.append(_Piece(answer, supervised=True))
        script.append(_Piece(IM_END, repeat=1, supervised=answers))
        script.append(_Piece("\n"))
    return script


def _audio(num_tokens: int) -> _Script:
    return [_Piece(AUDIO_BOS, repeat=1), _Piece(AUDIO_TOKEN, repeat=num_tokens), _Piece(AUDIO_EOS, repeat=1)]


def _clip_tokens(num_samples: int, clip: int, origin: Origin) -> int:
    if num_samples < MIN_CLIP_SAMPLES:
        least = f"one audio token needs {MIN_CLIP_SAMPLES} at 16 kHz: drop it"
        raise SampleError(origin, f"clip {clip} has {num_samples} samples; {least}")
    if num_samples > MAX_CLIP_SAMPLES:
        raise SampleError(
            origin,
            f"clip {clip} has {num_samples} samples, more than {MAX_CLIP_SECONDS} s ({MAX_CLIP_SAMPLES} samples at "
            "16 kHz); nothing is cut here: split it when making the shards",
        )
    return audio_tokens(num_samples)


def _task_prompt(record: PretrainRecord, wording: int) -> TaskPrompt:
    try:
        return task_prompt(
            record.task,
            audio_language=record.audio_language,
            text_language=record.text_language,
            override=record.prompt,
            wording=wording,
        )
    except ConfigError as error:
        raise SampleError(record.origin, "; ".join(error.problems)) from error


def _pair(prompt: Rendered, chosen: Rendered, rejected: Rendered) -> RenderedPair:
    return RenderedPair(prompt=prompt, chosen_ids=chosen.input_ids, rejected_ids=rejected.input_ids)
