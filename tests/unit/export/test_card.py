from __future__ import annotations

import yaml

from qwen_audio_train.export.card import DataFacts, Kind, card
from qwen_audio_train.export.verify import Verification

SETTINGS = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": ["q_proj"], "modules_to_save": None}


def made(base: str | None, kind: Kind = Kind.adapter) -> str:
    return card(
        kind,
        base=base,
        settings=SETTINGS,
        dtype="bfloat16",
        data=DataFacts("held out", ("fr", "en"), ("CC-BY-4.0",)),
        verification=Verification(2.5e-6, 10, True, 8.0),
        versions={"torch": "2", "peft": "0"},
    )


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_card_of_a_hub_model_names_no_path_of_this_machine():
    text = made("Qwen/Qwen2-Audio-7B")
    found = metadata(text)
    assert (found["base_model"], found["license"]) == ("Qwen/Qwen2-Audio-7B", "apache-2.0")
    assert found["language"] == ["en", "fr"]
    assert 'from_pretrained("Qwen/Qwen2-Audio-7B"' in text
    assert "2.50e-06" in text


def test_card_of_a_local_base_claims_no_hub_model_and_no_licence():
    found = metadata(made("/somewhere/initial"))
    assert "base_model" not in found
    assert "license" not in found


def test_code_of_every_card_compiles():
    for kind in Kind:
        text = made("Qwen/Qwen2-Audio-7B", kind)
        compile(text.split("```python\n")[1].split("```")[0], kind.value, "exec")
