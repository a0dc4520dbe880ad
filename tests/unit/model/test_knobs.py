"""Knobs save memory or time and change nothing else: each tower's checkpointing, quantised weights, compilation."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.model import AttentionKernel, ModelConfig, Quantization
from qwen_audio_train.config.optim import OptimConfig, OptimName
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model import knobs
from qwen_audio_train.model.knobs import compile_pointwise, require_bitsandbytes
from qwen_audio_train.model.load import load_model
from qwen_audio_train.model.span_attention import PackedRow
from qwen_audio_train.model.trainable import choose_trainable, count_parameters, lora_config, with_adapter
from qwen_audio_train.samples import AttentionSpans
from tests import builders

ALL, NO_ENCODER, NO_LLM = (
    TrainableConfig(True, True, True),
    TrainableConfig(False, True, True),
    TrainableConfig(True, True, False),
)


@pytest.fixture(scope="module")
def batch(workshop, tmp_path_factory):
    """A micro-batch as the model gets it, from the real pipeline: clips of several lengths."""
    run_dir = tmp_path_factory.mktemp("run")
    trainer = workshop.trainer("pretrain", workshop.config("pretrain", run_dir))
    return dict(next(iter(trainer.get_train_dataloader())))


def prepared(workshop, trainable=ALL, *, lora=False, compiled=False, **config):
    model = load_model(str(workshop.folder / "model"), ModelConfig(**config)).train()
    compile_pointwise(model, wanted=compiled)
    choose_trainable(model, trainable)
    torch.manual_seed(0)
    adapter = lora_config(AdapterConfig(kind=AdapterKind.lora, rank=2), trainable) if lora else None
    model = with_adapter(model, adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model, batch):
    """Gradients by name, and how often each layer's normalisation ran, by tower."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        tower = "encoder" if "audio_tower" in name else "llm"
        if name.endswith(("self_attn_layer_norm", "input_layernorm")):
            module.register_forward_pre_hook(lambda *_, tower=tower: calls.update([tower]))
    loss = -model(**batch).log_probs.sum() / 100
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, calls


def assert_equal(got, expected, tolerance=1e-6):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("encoder", "llm", "expected"),
    [(True, False, (4, 2)), (False, True, (2, 4)), (True, True, (4, 4)), (False, False, (2, 2))],
)
@pytest.mark.parametrize("lora", [False, True])
def test_each_tower_is_recomputed_alone_and_gradients_stay(workshop, batch, encoder, llm, expected, lora):
    plain, _ = gradients(prepared(workshop, lora=lora), batch)
    model = prepared(workshop, lora=lora, checkpoint_encoder=encoder, checkpoint_llm=llm)
    got, calls = gradients(model, batch)
    assert (calls["encoder"], calls["llm"]) == expected, "two layers each; twice as often where recomputed"
    assert_equal(got, plain)


@pytest.mark.parametrize(
    ("trainable", "expected"), [(NO_ENCODER, (2, 4)), (NO_LLM, (4, 4))], ids=["frozen encoder", "frozen llm"]
)
@pytest.mark.parametrize("lora", [False, True])
def test_frozen_towers(workshop, batch, trainable, expected, lora):
    plain, _ = gradients(prepared(workshop, trainable, lora=lora), batch)
    both = {"checkpoint_encoder": True, "checkpoint_llm": True}
    got, calls = gradients(prepared(workshop, trainable, lora=lora, **both), batch)
    assert (calls["encoder"], calls["llm"]) == expected
    assert_equal(got, plain)
    assert plain


def test_a_layer_may_get_what_is_no_tensor(workshop):
    """Attention spans travel to the layers as an object among the keyword arguments."""
    encoder = load_model(str(workshop.folder / "model"), ModelConfig(checkpoint_encoder=True)).model.audio_tower.train()
    seen = []
    encoder.layers[0].self_attn.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    hidden = torch.randn(1, 4, 32, requires_grad=True)
    row = PackedRow(AttentionSpans((3, 1)), AttentionKernel.splits, torch.device("cpu"))
    encoder.layers[0](hidden, None, spans=row).sum().backward()
    assert row.num_uses == 2
    assert len(seen) == 2
    assert seen[0]["spans"] is seen[1]["spans"]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_gradients_equal_and_any_length_goes(workshop, batch, lora, checkpointed):
    model = prepared(workshop, lora=lora, compiled=True, checkpoint_llm=checkpointed)
    assert model.state_dict().keys() == prepared(workshop, lora=lora).state_dict().keys()
    assert_equal(gradients(model, batch)[0], gradients(prepared(workshop, lora=lora), batch)[0], tolerance=1e-5)
    assert torch.isfinite(model(**builders.text_rows(list(range(7)))).log_probs).all()
    compiled = {type(m).__name__ for m in model.modules() if m._compiled_call_impl is not None}
    assert compiled == {"Qwen2MLP", "Qwen2RMSNorm"}


@pytest.mark.parametrize(("quantization", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_only_the_language_models_linear_layers_are_quantised(workshop, quantization, layer):
    model = load_model(str(workshop.folder / "model"), ModelConfig(quantization=Quantization(quantization)))
    quantised = [name for name, module in model.named_modules() if type(module).__name__ == layer]
    assert len(quantised) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert {p.dtype for n, p in model.named_parameters() if "language_model.layers" not in n} == {torch.float32}
    plain = load_model(str(workshop.folder / "model"))
    choose_trainable(model, NO_ENCODER)
    assert {k: v[1] for k, v in count_parameters(model).items()} == {
        k: v[1] for k, v in count_parameters(plain).items()
    }


def test_an_adapter_is_not_merged_into_quantised_weights(workshop, tmp_path):
    prepared(workshop, lora=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is an adapter; merging.*merged/"):
        load_model(str(tmp_path), ModelConfig(quantization=Quantization.nf4))


def test_a_missing_bitsandbytes_is_named_with_its_remedy(monkeypatch):
    model, optim = ModelConfig(quantization=Quantization.nf4), OptimConfig(name=OptimName.adamw_8bit)
    require_bitsandbytes(model, optim)
    monkeypatch.setattr(knobs.importlib.util, "find_spec", lambda name: None)
    require_bitsandbytes(ModelConfig(), OptimConfig())
    with pytest.raises(ConfigError, match=r"adamw_8bit and model.quantization=nf4 needs bitsandbytes.*quantized"):
        require_bitsandbytes(model, optim)
    assert importlib.util.find_spec("bitsandbytes") is None, "the test looked where the code looks"
