"""An export appears only when a fresh process with stock libraries says what the trained model says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.checkpoint import publish
from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.export import ExportConfig
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.errors import ExportError
from qwen_audio_train.export import stage as stage_module
from qwen_audio_train.export import write
from qwen_audio_train.export.answers import VerificationSample
from qwen_audio_train.export.card import DataFacts
from qwen_audio_train.export.stage import export_stage
from qwen_audio_train.export.verify import Verification
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.trainable import lora_config, with_adapter
from qwen_audio_train.prompts.render import Renderer
from tests import builders
from tests.toy_tokenizer import toy_processor, toy_tokenizer

DATA = DataFacts("toy", ("en", "de"), ("CC0-1.0",))


def randomise(model, std: float = 0.15) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=std)


def save_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    config = builders.tiny_config()
    config.text_config.vocab_size = len(toy_tokenizer())
    config.audio_token_index = config.audio_token_id = toy_tokenizer().convert_tokens_to_ids("<|AUDIO|>")
    model = EfficientQwen2Audio(config)
    randomise(model)
    model.to(dtype).save_pretrained(folder)
    toy_processor().save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, encoder: bool = True, llm: bool = True) -> Path:
    torch.manual_seed(1)
    lora = lora_config(AdapterConfig(kind=AdapterKind.lora, rank=2), TrainableConfig(encoder, projector=True, llm=llm))
    model = with_adapter(EfficientQwen2Audio.from_pretrained(base, dtype=torch.float32), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    toy_processor().save_pretrained(folder)
    return folder


def samples(count: int = 3) -> list[VerificationSample]:
    renderer, log_mel, made = Renderer(toy_tokenizer()), LogMel(80), []
    for index in range(count):
        clips = [builders.noise_clip(5000 + 1777 * index, seed) for seed in range(index % 3)]
        content = [{"type": "audio"}] * len(clips) + [{"type": "text", "text": "What does the person say?"}]
        rendered = renderer.render_chat_prompt([{"role": "user", "content": content}], [len(clip) for clip in clips])
        frames = tuple(lengths.mel_frames(len(clip)) for clip in clips)
        mels = tuple(log_mel(clip) for clip in clips)
        made.append(VerificationSample(f"sample {index}", rendered.input_ids, tuple(clips), mels, frames))
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices: more threads only wait for each other, here and in the fresh process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adapter_stage(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stage")
    return save_adapter(save_base(root / "initial"), root / "final")


@pytest.fixture(scope="module")
def exported(adapter_stage, tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "export"
    config = ExportConfig(stage=str(adapter_stage), output=str(output), llm_only=True)
    return config, export_stage(config, samples(), DATA)


def first_logits(model, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt])).logits.numpy()


def test_all_forms_reload_equal_in_a_fresh_process(exported):
    _, result = exported
    assert result.is_new
    assert set(result.verifications) == {"adapter", "merged", "llm_only"}
    for found in result.verifications.values():
        assert found.generations_equal
        assert found.num_samples == 3
        assert 0 <= found.max_logit_difference < 1e-4
    assert set(result.num_bytes) == {"adapter", "merged", "llm_only/base", "llm_only/adapter"}
    publish.verify(result.output)
    assert not list(result.output.parent.glob(".*")) + list(result.output.parent.glob("*.failed"))


def test_the_adapter_changes_what_is_said(exported, adapter_stage):
    """Otherwise the test above would compare nothing."""
    base = Qwen2AudioForConditionalGeneration.from_pretrained(adapter_stage.parent / "initial")
    merged = Qwen2AudioForConditionalGeneration.from_pretrained(exported[1].output / "merged")
    prompt = [1, 2, 3, 4]
    assert np.abs(first_logits(base, prompt) - first_logits(merged, prompt)).max() > 0.1


def test_projector_trained_in_full_survives(exported, adapter_stage):
    trained = load_file(adapter_stage / "adapter_model.safetensors")
    weight = next(tensor for name, tensor in trained.items() if "multi_modal_projector.linear.weight" in name)
    for folder in ("merged", "llm_only/base"):
        written = load_file(exported[1].output / folder / "model.safetensors")
        assert torch.equal(written["multi_modal_projector.linear.weight"], weight)


def test_llm_only_has_what_serving_engines_accept(exported, adapter_stage):
    folder = exported[1].output / "llm_only"
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(AdapterConfig().llm_modules)
    assert settings["modules_to_save"] is None
    names = list(load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert names
    assert all(name.startswith("base_model.model.language_model.model.layers.") for name in names)
    base, untouched = (load_file(f / "model.safetensors") for f in (folder / "base", adapter_stage.parent / "initial"))
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(base[name], untouched[name])
    name = "audio_tower.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[name], untouched[name])


def test_llm_only_loads_onto_the_language_model_alone(exported):
    folder = exported[1].output / "llm_only"
    base = Qwen2AudioForConditionalGeneration.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "adapter")
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted
    assert not [name for name in adapted if "audio_tower" in name]


def test_settings_and_cards_say_what_the_folders_are(exported, adapter_stage):
    output = exported[1].output
    config = json.loads((output / "merged" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    adapter = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(adapter_stage.parent / "initial")
    text = (output / "adapter" / "README.md").read_text()
    for expected in ("library_name: peft", "PeftModel.from_pretrained", "rank 2", "- de", "CC0-1.0", "3 samples"):
        assert expected in text
    assert "PeftModel" not in (output / "merged" / "README.md").read_text()


def test_second_run_does_nothing_unless_inputs_changed(exported, monkeypatch):
    config, first = exported
    calls = []
    monkeypatch.setattr(stage_module, "_write_and_verify", lambda *args: calls.append(args) or pytest.fail("wrote"))
    again = export_stage(config, samples(), DATA)
    assert not again.is_new
    assert (again.verifications, again.num_bytes) == (first.verifications, first.num_bytes)
    with pytest.raises(pytest.fail.Exception):
        export_stage(config, samples(2), DATA)
    assert len(calls) == 1


def test_corrupted_weight_is_not_published(adapter_stage, tmp_path, monkeypatch):
    def corrupting(model, folder, dtype):
        write_model(model, folder, dtype)
        weights = load_file(folder / "model.safetensors")
        weights["language_model.model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    write_model = write.write_model
    monkeypatch.setattr(write, "write_model", corrupting)
    output = tmp_path / "export"
    with pytest.raises(ExportError, match=r"merged: .* differs .* logits by up to [0-9.e-]+ at sample \d"):
        export_stage(ExportConfig(stage=str(adapter_stage), output=str(output)), samples(2)[1:], DATA)
    assert not output.exists()
    assert (tmp_path / "export.failed" / "merged" / "model.safetensors").is_file()


def test_adapter_on_a_bfloat16_model(tmp_path):
    """Merged weights are rounded when stored: the reload equals what was stored, and the rounding is reported."""
    stage = save_adapter(save_base(tmp_path / "initial", torch.bfloat16), tmp_path / "final")
    config = ExportConfig(stage=str(stage), output=str(tmp_path / "export"))
    exported = export_stage(config, samples(2)[1:], DATA)
    assert list(exported.verifications) == ["adapter", "merged"]
    weights = load_file(exported.output / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    rounding = json.loads((exported.output / "verification.json").read_text())["rounding"]
    assert 1e-4 < rounding["merged"] < 0.5


def test_full_model_has_no_adapter_folder(adapter_stage, tmp_path, monkeypatch):
    def without_process(targets, samples, *args, **kwargs):
        return {target.name: Verification(0.0, len(samples), True, 0.0) for target in targets}, {}

    monkeypatch.setattr(stage_module, "verify", without_process)
    initial = adapter_stage.parent / "initial"
    exported = export_stage(ExportConfig(stage=str(initial), output=str(tmp_path / "export")), samples(1), DATA)
    assert list(exported.verifications) == list(exported.num_bytes) == ["merged"]
    before, after = (load_file(folder / "model.safetensors") for folder in (initial, exported.output / "merged"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_folder_that_is_no_export_is_not_replaced(adapter_stage, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="no export of ours"):
        export_stage(ExportConfig(stage=str(adapter_stage), output=str(tmp_path)), samples(1), DATA)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_llm_only_needs_an_adapter_of_the_language_model(adapter_stage, tmp_path):
    base = adapter_stage.parent / "initial"
    for stage in (base, save_adapter(base, tmp_path / "encoder", llm=False)):
        config = ExportConfig(stage=str(stage), output=str(tmp_path / "export"), llm_only=True)
        with pytest.raises(ExportError, match="llm_only=false"):
            export_stage(config, samples(1), DATA)
    assert not (tmp_path / "export").exists()


def test_an_unfinished_stage_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors"):
        export_stage(ExportConfig(stage=str(tmp_path), output=str(tmp_path / "export")), samples(1), DATA)
