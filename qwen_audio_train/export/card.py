"""Model cards: what a folder is, how stock libraries load it, what was checked, and which licences bind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from qwen_audio_train.export.verify import Verification

APACHE_BASES = ("Qwen/Qwen2-Audio-7B", "Qwen/Qwen2-Audio-7B-Instruct")


class Kind(Enum):
    """What a folder holds."""

    adapter = "LoRA adapter"
    merged = "merged model"
    llm_base = "base of a language-model-only adapter: encoder and projector changes folded in"
    llm_adapter = "LoRA adapter of the language model only"


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of the recordings behind a model."""

    verify_set: str
    """Name of the set that the reload was checked on."""
    languages: Sequence[str] = ()
    """ISO codes in that set."""
    licenses: Sequence[str] = ()
    """Of its recordings."""


def card(
    kind: Kind,
    *,
    base: str | None,
    settings: dict[str, Any] | None,
    dtype: str,
    data: DataFacts,
    verification: Verification | None,
    versions: dict[str, str],
) -> str:
    """README.md of one folder, with the metadata block that model hubs read."""
    is_peft = kind in (Kind.adapter, Kind.llm_adapter)
    parts = [
        _front_matter(base, is_peft=is_peft, data=data),
        f"# Qwen2-Audio: {kind.value}\n\n"
        "A model of the Qwen2-Audio family (Whisper encoder, projector, language model) made with qwen-audio-train: "
        "audio and text in, text out. Clips are 16 kHz mono, at most 30 s each.",
        _settings(base, settings if is_peft else None, dtype),
        "## How to load\n\nStock `transformers`" + (" and `peft`" if is_peft else "") + ", nothing else:\n\n"
        "```python\n" + _code(base if is_peft else None) + "```",
        _checked(verification, versions, data),
        _licence(base, data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: str | None, *, is_peft: bool, data: DataFacts) -> str:
    lines = [f"library_name: {'peft' if is_peft else 'transformers'}", "pipeline_tag: audio-text-to-text"]
    if base is not None and not base.startswith(("/", ".")):
        lines += [f"base_model: {base}", f"base_model_relation: {'adapter' if is_peft else 'finetune'}"]
    if base in APACHE_BASES:
        lines.append("license: apache-2.0")
    if data.languages:
        lines += ["language:", *(f"- {language}" for language in sorted(data.languages))]
    lines += ["tags:", "- qwen2_audio", "- speech", *(["- lora"] if is_peft else [])]
    return "---\n" + "\n".join(lines) + "\n---"


def _settings(base: str | None, settings: dict[str, Any] | None, dtype: str) -> str:
    lines = [f"* Trained from: `{base}`"] if base is not None else []
    lines.append(f"* Weights are stored in {dtype}")
    if settings is not None:
        targets = settings["target_modules"]
        lines += [
            f"* LoRA: rank {settings['r']}, alpha {settings['lora_alpha']}, dropout {settings['lora_dropout']}",
            f"* Target modules: `{targets if isinstance(targets, str) else ', '.join(targets)}`",
        ]
        if settings.get("modules_to_save"):
            lines.append(f"* Trained in full and stored with the adapter: {', '.join(settings['modules_to_save'])}")
    return "\n".join(lines)


def _code(base: str | None) -> str:
    """Runs from inside the folder's parent; ``here`` is the folder."""
    lines = ["from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration"]
    if base is not None:
        lines += [
            "from peft import PeftModel",
            "",
            'here = "path/to/this/folder"',
            f'model = Qwen2AudioForConditionalGeneration.from_pretrained("{base}", dtype="auto")',
            "model = PeftModel.from_pretrained(model, here)",
        ]
    else:
        lines += [
            "",
            'here = "path/to/this/folder"',
            'model = Qwen2AudioForConditionalGeneration.from_pretrained(here, dtype="auto")',
        ]
    lines += [
        "processor = AutoProcessor.from_pretrained(here)",
        "",
        "# waveform: float32, 16 kHz, mono",
        'text = "<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: "',
        'inputs = processor(text=[text], audio=[waveform], sampling_rate=16000, return_tensors="pt")',
        "generated = model.generate(**inputs, max_new_tokens=128)",
        'print(processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])',
    ]
    return "\n".join(lines) + "\n"


def _checked(verification: Verification | None, versions: dict[str, str], data: DataFacts) -> str:
    if verification is None:
        return ""
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        "## Checked by reloading\n\n"
        f"Loaded in a fresh process with {libraries} and compared with the trained model on "
        f"{verification.num_samples} samples of `{data.verify_set}`, in float32: logits differ by at most "
        f"{verification.max_logit_difference:.2e}, and all greedy generations are equal."
    )


def _licence(base: str | None, data: DataFacts) -> str:
    known = (
        f"The recordings of `{data.verify_set}` are under: {', '.join(sorted(data.licenses))}. "
        if data.licenses
        else ""
    )
    below = f"the licence of `{base}`" if base is not None else "the licences of the models it was built from"
    return (
        f"## Licence\n\nThese weights derive from other weights and from training data: {below} and the licences of "
        f"all training sets apply. {known}Name the training sets here before you publish."
    )
