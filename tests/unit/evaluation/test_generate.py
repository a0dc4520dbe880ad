"""Batched greedy answers are those of stock ``generate`` and do not depend on the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qwen_audio_train.evaluation.generate import Generator, Prompt
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet

NEW_TOKENS = 8
USER = [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": "Say it."}]}]


def enlarge(model) -> None:
    """Weights that make answers differ from prompt to prompt; the same for both classes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(model.state_dict(keep_vars=True).items()):
            if parameter.dim() > 1 and parameter.shape[0] != 1500:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def shards(workshop):
    return ShardSet.open(workshop.folder / "pretrain")


@pytest.fixture(scope="module")
def parts(workshop, shards):
    model = load_model(str(workshop.folder / "model")).eval()
    enlarge(model)
    front = Front.of(load_processor(str(workshop.folder / "model")))
    return model, front, front.clips(shards), Renderer(front.tokenizer)


def generator_of(parts, llm_tokens_per_batch: int) -> Generator:
    model, front, _, _ = parts
    return Generator(model, front.tokenizer, front.collator(), NEW_TOKENS, llm_tokens_per_batch)


@pytest.fixture(scope="module")
def prompts(parts, shards):
    """Different forms and lengths, in no order."""
    renderer = parts[3]
    made = []
    for i in range(7):
        record = shards.record(i)
        if i % 2:
            rendered = renderer.render_pretrain_prompt(record)
        else:
            rendered = renderer.render_chat_prompt(USER, [record.clips[0].num_samples])
        made.append(Prompt(rendered, record))
    return made


def test_a_batch_answers_as_one_at_a_time(parts, prompts):
    together = generator_of(parts, 10_000).answer(prompts, parts[2], title="all")
    alone = [generator_of(parts, 1).answer([prompt], parts[2], title="one")[0] for prompt in prompts]
    assert together == alone
    assert len({answer.text for answer in together}) > 2, "answers that are all alike show nothing"


def test_groups_keep_the_budget_and_every_prompt(parts, prompts):
    longest = max(len(prompt.rendered.input_ids) for prompt in prompts) + NEW_TOKENS
    groups = list(generator_of(parts, 2 * longest)._groups(prompts))
    assert sorted(index for group in groups for index in group) == list(range(len(prompts)))
    assert len(groups) > 1
    for group in groups:
        tokens = max(len(prompts[i].rendered.input_ids) for i in group) + NEW_TOKENS
        assert len(group) == 1 or tokens * len(group) <= 2 * longest


def test_answers_equal_stock_generate_with_the_processors_inputs(workshop, parts, prompts, shards):
    processor = AutoProcessor.from_pretrained(workshop.folder / "model")
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(workshop.folder / "model", dtype=torch.float32).eval()
    stock.load_state_dict(parts[0].state_dict())
    chosen = prompts[0:5:2]
    answers = generator_of(parts, 10_000).answer(chosen, parts[2], title="ours")
    for prompt, answer in zip(chosen, answers, strict=True):
        text = processor.apply_chat_template(USER, add_generation_prompt=True, tokenize=False)
        audio = shards.read_clip(prompt.record.clips[0], prompt.record.origin)
        inputs = processor(text=text, audio=[audio], sampling_rate=16_000, return_tensors="pt")
        ids = stock.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, inputs.input_ids.shape[1] :]
        ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        kept = [token for token in ids.tolist() if token not in ends]
        assert answer.text == processor.tokenizer.decode(kept)
        assert answer.ended == (len(kept) < len(ids))


def test_an_answer_that_ends_itself_says_so(parts, prompts):
    model, front, clips, _ = parts
    end = front.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def end_wins(module, inputs, output):
        output[..., end] = 1e4
        return output

    handle = model.lm_head.register_forward_hook(end_wins)
    answer = generator_of(parts, 100).answer(prompts[:1], clips, title="end")[0]
    handle.remove()
    assert answer.ended
    assert answer.text == ""
