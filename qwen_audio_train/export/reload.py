"""The fresh process: loads an export with stock transformers and peft, answers the samples, writes the answers down.

Started by path, never imported, so that nothing of this package is in the process that vouches for its exports. What
it needs comes in a request folder and what it finds goes back into it:

    request.json         targets (name, base, adapter or null), prompt texts, clips of each, device, lengths
    clips.safetensors    waveforms, float32 at 16 kHz
    <target>.safetensors prompt ids, logits at the last positions, greedily generated ids, of each sample
    result.json          versions, and which modules of the training package were imported (there must be none)
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration


def main(folder: Path) -> None:
    """Answer every sample with every target."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    clips = load_file(folder / "clips.safetensors")
    for target in request["targets"]:
        model = load(target["base"], target["adapter"]).to(request["device"])
        processor = AutoProcessor.from_pretrained(target["processor"])
        found: dict[str, torch.Tensor] = {}
        for index, (text, num_clips) in enumerate(zip(request["prompts"], request["num_clips"], strict=True)):
            waveforms = [clips[f"{index}.{clip}"].numpy() for clip in range(num_clips)]
            answer = answer_one(model, processor, text, waveforms, request)
            found |= {f"{index}.{name}": tensor.cpu().contiguous() for name, tensor in answer.items()}
        save_file(found, folder / f"{target['name']}.safetensors")
        del model
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "qwen_audio_train")
    (folder / "result.json").write_text(json.dumps({"versions": versions, "ours": ours}), encoding="utf-8")


def load(base: str, adapter: str | None) -> Any:
    """As the model card says, in float32."""
    model = Qwen2AudioForConditionalGeneration.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


@torch.no_grad()
def answer_one(
    model: Any, processor: Any, text: str, waveforms: list[Any], request: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Prompt ids (S,), logits (N, V) at the last N positions, and greedily generated ids (G,)."""
    audio = {"audio": waveforms, "sampling_rate": 16_000} if waveforms else {}
    inputs = processor(text=[text], return_tensors="pt", **audio).to(request["device"])
    logits = model(**inputs, use_cache=False).logits[0, -request["num_positions"] :]
    generated = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=request["max_new_tokens"])
    prompt_ids = inputs["input_ids"][0]
    return {"prompt_ids": prompt_ids, "logits": logits.float(), "generated_ids": generated[0, len(prompt_ids) :]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
