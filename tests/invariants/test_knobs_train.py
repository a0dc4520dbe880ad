"""Every knob trains: losses fall, only what should learn changes, and what is left behind goes on as usual."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from qwen_audio_train.model.load import load_model

LORA = ("adapter=lora", "adapter.rank=4", "optim.learning_rate=1e-2")
SAVING = "checkpoint.every_steps=3"


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_qlora_trains_adapters_alone_and_merges_into_the_unquantised_base(workshop, tmp_path, stage, quantization):
    settings = (f"model.quantization={quantization}", "model.checkpoint_llm=true", *LORA)
    config = workshop.config(stage, tmp_path / "run", *settings, steps=6)
    trainer = workshop.trainer(stage, config)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    workshop.train(stage, config, trainer)
    assert losses(trainer)[-1] < losses(trainer)[0]
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    final = str(tmp_path / "final")
    trainer.save_model(final)
    merged = load_model(final).eval()
    adapted = PeftModel.from_pretrained(load_model(str(workshop.folder / "model")), final).eval()
    plain = load_model(str(workshop.folder / "model")).eval()
    batch = {"rows": next(iter(trainer.get_train_dataloader()))["rows"]}
    expected = adapted(**batch).log_probs
    torch.testing.assert_close(merged(**batch).log_probs, expected, rtol=1e-5, atol=1e-5)
    assert (plain(**batch).log_probs - expected).abs().max() > 1e-3, "the adapter had learnt nothing"
    assert all(tensor.is_floating_point() for tensor in load_file(f"{final}/adapter_model.safetensors").values())


def test_an_8_bit_optimiser_trains_and_resumes(workshop, tmp_path):
    def trained(name, steps):
        settings = ("optim.name=adamw_8bit", SAVING, "optim.final_learning_rate_ratio=1.0")
        return workshop.train("sft", workshop.config("sft", tmp_path / name, *settings, steps=steps))

    whole = trained("whole", 6)
    assert losses(whole)[-1] < losses(whole)[0]
    kept = [s["state1"].dtype for s in whole.optimizer.optimizer.state.values()]
    assert torch.uint8 in kept, "no tensor of the model is large enough to be held in 8 bits"
    trained("broken", 3)
    assert losses(trained("broken", 6))[-3:] == pytest.approx(losses(whole)[-3:], rel=1e-5)


def test_autocast_trains_over_float32_weights(workshop, tmp_path):
    whole = workshop.train("sft", workshop.config("sft", tmp_path / "plain", steps=6))
    config = workshop.config("sft", tmp_path / "autocast", "runtime.autocast_bfloat16=true", steps=6)
    trainer = workshop.train("sft", config)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert losses(trainer) == pytest.approx(losses(whole), rel=2e-2)
    assert losses(trainer) != losses(whole), "nothing was computed in bfloat16"


def test_a_compiled_run_equals_an_eager_one(workshop, tmp_path):
    eager = workshop.train("dpo", workshop.config("dpo", tmp_path / "eager", *LORA, steps=2))
    compiled = workshop.train("dpo", workshop.config("dpo", tmp_path / "c", "runtime.compile=true", *LORA, steps=2))
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)
    assert json.dumps(sorted(compiled.model.state_dict())) == json.dumps(sorted(eager.model.state_dict()))
