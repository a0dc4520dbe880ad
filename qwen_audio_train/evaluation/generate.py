"""Answers to many prompts, in batches of like length, from audio at its true length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.pipeline.clips import ClipSource
from qwen_audio_train.pipeline.collate import Collator, to_device
from qwen_audio_train.prompts.render import END_OF_TEXT, IM_END
from qwen_audio_train.samples import Record, Rendered


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and the record whose clips it hears."""

    rendered: Rendered
    record: Record


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said."""

    text: str
    """Decoded; special tokens kept (a language tag may be among them), end tokens taken off."""
    ended: bool
    """It closed its answer itself, rather than running into the limit."""


@dataclass(frozen=True)
class Generator:
    """A model with everything it needs to answer."""

    model: EfficientQwen2Audio
    tokenizer: Any
    collator: Collator
    max_new_tokens: int
    llm_tokens_per_batch: int
    temperature: float = 0.0
    """0 is greedy; above, answers are drawn from torch's global random state."""

    def answer(self, prompts: Sequence[Prompt], clips: ClipSource, *, title: str) -> list[Answer]:
        """Answers in the order of the prompts."""
        answers: dict[int, Answer] = {}
        with tqdm(total=len(prompts), desc=title, unit="answer", leave=False) as bar:
            for group in self._groups(prompts):
                for index, answer in zip(group, self._answer([prompts[i] for i in group], clips), strict=True):
                    answers[index] = answer
                bar.update(len(group))
        return [answers[index] for index in range(len(prompts))]

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Prompts of like length together, within the token budget (what will be generated included)."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].rendered.input_ids))
        group: list[int] = []
        for index in order:
            longest = len(prompts[(group or [index])[0]].rendered.input_ids) + self.max_new_tokens
            if group and longest * (len(group) + 1) > self.llm_tokens_per_batch:
                yield group
                group = []
            group.append(index)
        if group:
            yield group

    @torch.no_grad()
    def _answer(self, prompts: Sequence[Prompt], clips: ClipSource) -> Iterator[Answer]:
        inputs = [[clips.read(clip, p.record.origin, key=0) for clip in p.record.clips] for p in prompts]
        batch = self.collator.prompts([p.rendered for p in prompts], inputs)
        batch = to_device(batch, self.model.device)
        attention_mask = batch.pop("attention_mask")
        ends = self.tokenizer.convert_tokens_to_ids([END_OF_TEXT, IM_END])
        generated = self.model.generate(
            inputs_embeds=self.model.embed(**batch),
            attention_mask=attention_mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            temperature=self.temperature or None,
            eos_token_id=ends,
            pad_token_id=self.collator.pad_id,
        )
        for ids in generated.tolist():
            first_end = next((i for i, token in enumerate(ids) if token in ends), None)
            text = self.tokenizer.decode(ids[:first_end], skip_special_tokens=False)
            yield Answer(text=text, ended=first_end is not None)
