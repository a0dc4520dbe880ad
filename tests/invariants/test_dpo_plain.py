"""Our DPO equals a plain computation by stock transformers: 30 s padding, a forward for each row and model, fp32."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration
from trl import DPOConfig, DPOTrainer

from qwen_audio_train.config.preference import LOSS_TYPES
from qwen_audio_train.model.efficient import own_model
from qwen_audio_train.pipeline.loading import Draw
from qwen_audio_train.pipeline.quarantine import Limits, Quarantine
from qwen_audio_train.training.arguments import preference_arguments, trainer_arguments
from qwen_audio_train.training.runtime import Ranks

# Voice chat, audio analysis, text only, and an odd number of them.
SAMPLES = [3, 1, 2, 4, 9]
TEXT_ONLY = [2, 5, 8, 11]
BETA = 0.1
COMPARED = (
    "loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected",
    "entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy",
)  # fmt: skip
LORA = ("adapter=lora", "trainable.encoder=true", "trainable.llm=true")
FULL = ("trainable=all",)
BOTH = pytest.mark.parametrize("how", [FULL, LORA], ids=["full", "lora"])


class FixedBatches:
    """The same batches at every step, in place of a plan's."""

    start_step = 0

    def __init__(self, batches: list[Any], plan: Any, num_steps: int) -> None:
        self.plan = plan
        self.num_steps = num_steps
        self._batches = batches * num_steps

    def loader(self) -> list[Any]:
        return self._batches

    def position(self, step: int) -> str:
        return "{}"

    quarantine = Quarantine(Path("never-written"), Limits(1, 0.0), rank=0)

    def epoch_after(self, step: int) -> float:
        return float(step)


class TokensIn(DPOTrainer):
    """trl's trainer for pairs that are token ids already (it would tokenise text, and end answers in its own way)."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def make(workshop: Any, folder: Any, how: tuple[str, ...], **options: Any) -> Any:
    config = workshop.config("dpo", folder, *how, "batching.bins_per_step=1", **options)
    return workshop.trainer("dpo", config)


def perturb(model: Any) -> None:
    """Away from the reference, so that every reward and gradient is something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def losses(trainer: Any, batch: Any) -> torch.Tensor:
    pairs = trainer.count_items(batch)
    return trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=pairs)


@BOTH
def test_loss_before_the_first_step_is_ln_2(workshop, tmp_path, how):
    trainer = make(workshop, tmp_path, how, model="dropout")
    trainer.model.train()
    loss = losses(trainer, trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES]))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-7)


def stock_log_prob(model: Any, processor: Any, shards: Any, record: Any, answer: str) -> torch.Tensor:
    """log p(answer and its end | conversation) by the stock classes alone."""
    messages = [dict(message) for message in record.messages]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    audio = [shards.read_clip(clip, record.origin) for clip in record.clips] or None
    lengths = []
    for text in (prompt, f"{prompt}{answer}<|im_end|>"):
        inputs = processor(text=text, audio=audio, sampling_rate=16_000, return_tensors="pt")
        lengths.append(inputs.input_ids.shape[1])
    logits = model(**inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
    scores = logits.gather(-1, inputs.input_ids[0, 1:, None])[:, 0]
    return scores[lengths[0] - 1 :].sum()


def stock_twin(trainer: Any, source: Any) -> Any:
    """A stock model with the trainer's trained weights (under a stock peft LoRA, if it has one)."""
    twin = Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    if hasattr(trainer.model, "peft_config"):
        from peft import get_peft_model

        twin = get_peft_model(twin, copy.deepcopy(trainer.model.peft_config["default"]))
    twin.load_state_dict(trainer.model.state_dict())
    return twin


@BOTH
def test_loss_rewards_and_gradients_equal_a_plain_stock_computation(workshop, tmp_path, how):
    trainer = make(workshop, tmp_path, how)
    trainer.model.train()
    perturb(trainer.model)
    source, builder = workshop.folder / "model", trainer.batches.builder
    processor = AutoProcessor.from_pretrained(source)
    policy = stock_twin(trainer, source)
    reference = Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=torch.float32)

    terms, rewards = [], {"chosen": [], "rejected": []}
    for sample in SAMPLES:
        record = builder.sources[0].shards.record(sample)
        ratios = {}
        for side, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
            with torch.no_grad():
                base = stock_log_prob(reference, processor, builder.sources[0].shards, record, answer)
            ratios[side] = BETA * (stock_log_prob(policy, processor, builder.sources[0].shards, record, answer) - base)
            rewards[side].append(float(ratios[side].detach()))
        terms.append(-logsigmoid(ratios["chosen"] - ratios["rejected"]))
    expected = sum(terms) / len(terms)
    expected.backward()

    loss = losses(trainer, builder.build([Draw(0, i, 0) for i in SAMPLES]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert abs(float(loss.detach()) - math.log(2)) > 1e-2, "too near the start to mean anything"
    for side, values in rewards.items():
        got = trainer._metrics["train"][f"rewards/{side}"][0]
        # A reward is a small difference of log-probabilities some thousand times as large.
        assert got == pytest.approx(sum(values) / len(values), rel=1e-5, abs=1e-6)
    compare_gradients(trainer.model, policy)


def compare_gradients(ours: Any, stock: Any) -> None:
    expected = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    got = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert got
    assert got.keys() <= expected.keys()
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in got.values()))
    for name, gradient in got.items():
        difference = float((gradient - expected[name]).norm())
        assert difference <= 1e-5 * max(float(expected[name].norm()), 1e-2 * norm), f"{name}: {difference:.2e}"


@BOTH
def test_training_leaves_the_reference_bit_identical(workshop, tmp_path, how):
    config = workshop.config("dpo", tmp_path, *how, steps=3)
    trainer = workshop.trainer("dpo", config)
    frozen = trainer.ref_model or trainer.model
    before = {name: t.clone() for name, t in frozen.state_dict().items() if "lora_" not in name}
    trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    workshop.train("dpo", config, trainer)
    after = frozen.state_dict()
    assert before
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    parameters = dict(trainer.model.named_parameters())
    assert any(not torch.equal(tensor, parameters[name]) for name, tensor in trained.items())


@BOTH
def test_a_pairs_audio_is_encoded_once_by_each_model_whose_encoder_differs(workshop, tmp_path, how):
    trainer = make(workshop, tmp_path, how)
    encoded: list[int] = []
    towers = [module for m in (trainer.model, trainer.ref_model) if m for name, module in m.named_modules()
              if name.endswith("audio_tower")]  # fmt: skip
    for tower in towers:
        tower.conv1.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0].shape[-1]))
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES])
    losses(trainer, batch)
    frames = batch["rows"]["mels"].shape[1]
    assert len(batch["rows"]["clip_spans"].lengths) == 4, "four pairs with audio"
    assert encoded == [frames, frames], "once for the policy, once for the reference"


@pytest.mark.parametrize("how", [("trainable=projector_llm",), ("trainable=llm", "adapter=lora")], ids=["full", "lora"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_under_a_frozen_encoder_policy_and_reference_share_one_encoding(workshop, tmp_path, how, layout):
    trainer = make(workshop, tmp_path, (*how, f"batching={layout}"))
    perturb(trainer.model)
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES])
    shared = float(losses(trainer, batch))
    encoded: list[int] = []
    for model in filter(None, (trainer.model, trainer.ref_model)):
        own_model(model).model.audio_tower.conv1.register_forward_hook(lambda *_: encoded.append(1))
    assert float(losses(trainer, batch)) == shared
    assert encoded == [1]
    trainer._encoded = lambda model, rows: rows  # each encodes for itself
    assert float(losses(trainer, batch)) == pytest.approx(shared, rel=1e-6)
    assert encoded == [1, 1, 1]


@BOTH
def test_a_shared_prompt_equals_a_row_for_each_answer(workshop, tmp_path, how):
    """Loss, gradients and every metric of trl's."""
    trainers = [make(workshop, tmp_path / layout, (*how, f"batching={layout}")) for layout in ("packed", "padded")]
    found = []
    for trainer in trainers:
        trainer.model.train()
        perturb(trainer.model)
        loss = losses(trainer, trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES]))
        loss.backward()
        metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
        found.append({"loss": float(loss.detach()), **metrics})
    assert found[0] == {name: pytest.approx(value, rel=2e-5, abs=1e-6) for name, value in found[1].items()}
    compare_gradients(trainers[0].model, trainers[1].model)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_is_the_same_on_shared_prompts(workshop, tmp_path, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    how = (*FULL, f"preference.loss_types=[{loss_type}]", f"preference.label_smoothing={smoothing}")
    values = []
    for layout in ("packed", "padded"):
        trainer = make(workshop, tmp_path / layout, (*how, f"batching={layout}"))
        trainer.model.train()
        perturb(trainer.model)
        values.append(float(losses(trainer, trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES]))))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert math.isfinite(values[0])


def test_an_empty_bin_adds_nothing_to_any_loss(workshop, tmp_path):
    how = (*FULL, "preference.loss_types=[sigmoid,sft]", "preference.loss_weights=[1,1]")
    trainer = make(workshop, tmp_path, how)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.batches.builder.build([]), num_items_in_batch=3)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_text_only_pairs_equal_trl_with_the_stock_model(workshop, tmp_path):
    """trl's own collator, forward and head, on the same pairs: two steps of training."""
    ours = make(workshop, tmp_path / "ours", FULL, steps=2)
    builder = ours.batches.builder
    ours.batches = FixedBatches([builder.build([Draw(0, i, 0) for i in TEXT_ONLY])], ours.batches.plan, num_steps=2)
    ours.train()

    pairs = [builder.renderer.render_preference(builder.sources[0].shards.record(sample)) for sample in TEXT_ONLY]
    rows = [
        {
            "prompt_ids": pair.prompt.input_ids.tolist(),
            "chosen_ids": pair.chosen_ids.tolist(),
            "rejected_ids": pair.rejected_ids.tolist(),
        }
        for pair in pairs
    ]
    config = workshop.config("dpo", tmp_path / "trl", *FULL, "batching.bins_per_step=1", steps=2)
    arguments = trainer_arguments(config, ranks=Ranks(0, 1, True), num_steps=2)
    arguments |= {"per_device_train_batch_size": len(rows), "save_strategy": "no", "remove_unused_columns": True}
    source = workshop.folder / "model"
    theirs = TokensIn(
        model=Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=torch.float32),
        ref_model=Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=torch.float32),
        args=DPOConfig(**arguments, **preference_arguments(config.preference)),
        processing_class=AutoProcessor.from_pretrained(source).tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    theirs.model.model.audio_tower.embed_positions.requires_grad_(False)
    theirs.train()
    for step in range(2):
        for name in COMPARED:
            expected = theirs.state.log_history[step][name]
            assert ours.state.log_history[step][name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (step, name)
    assert ours.state.log_history[1]["rewards/margins"] > 1e-3
