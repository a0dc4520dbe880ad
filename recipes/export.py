"""Hand a stage's result to others: adapter and merged model, proved to reload equal in stock libraries.

python recipes/export.py export.stage=runs/dpo/final export.output=runs/export export.verify_set=data/heldout
python recipes/export.py ... export.llm_only=true        # also what serving engines accept as an adapter
"""

from __future__ import annotations

import logging

import numpy as np

from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.audio.lengths import mel_frames
from qwen_audio_train.config.load import recipe
from qwen_audio_train.config.stages import ExportRecipeConfig
from qwen_audio_train.export.answers import VerificationSample
from qwen_audio_train.export.card import DataFacts
from qwen_audio_train.export.stage import export_stage
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import ChatRecord, PreferenceRecord, PretrainRecord, Record, Rendered
from qwen_audio_train.shards.reader import ShardSet

NUM_SAMPLES = 10


@recipe("export")
def main(config: ExportRecipeConfig) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("qwen_audio_train").setLevel(logging.INFO)

    shards = ShardSet.open(config.export.verify_set, remote=config.export.remote)
    front = Front.of(load_processor(config.export.stage))
    renderer, log_mel = Renderer(front.tokenizer), LogMel(front.num_mel_bins)
    spread = np.unique(np.linspace(0, len(shards) - 1, NUM_SAMPLES).round().astype(int))
    samples = [verification_sample(shards, int(i), renderer, log_mel) for i in spread]

    known = shards.description
    data = DataFacts(shards.name, tuple(known["seconds_by_language"]), tuple(known["samples_by_license"]))
    exported = export_stage(config.export, samples, data)
    for name, found in exported.verifications.items():
        print(
            f"{name}: equal after reloading in stock libraries on {found.num_samples} samples, generations too; "
            f"logits differ by at most {found.max_logit_difference:.2e}"
        )
    for folder, num_bytes in exported.num_bytes.items():
        print(f"{exported.output / folder}  {num_bytes / 1e6:,.1f} MB")


def verification_sample(shards: ShardSet, i: int, renderer: Renderer, log_mel: LogMel) -> VerificationSample:
    """The prompt of a record, and its clips both as waveforms and as true-length mels."""
    record = shards.record(i)
    prompt = prompt_of(record, renderer)
    clips = record.clips[: len(prompt.clip_tokens)]
    waveforms = tuple(shards.read_clip(clip, record.origin) for clip in clips)
    mels = tuple(log_mel(waveform) for waveform in waveforms)
    frames = tuple(mel_frames(clip.num_samples) for clip in clips)
    return VerificationSample(str(record.origin), prompt.input_ids, waveforms, mels, frames)


def prompt_of(record: Record, renderer: Renderer) -> Rendered:
    """What an answer to this record would be generated from."""
    if isinstance(record, PretrainRecord):
        return renderer.render_pretrain_prompt(record)
    if isinstance(record, PreferenceRecord):
        return renderer.render_preference(record).prompt
    assert isinstance(record, ChatRecord)
    last_user = max(k for k, message in enumerate(record.messages) if message["role"] == "user")
    messages = record.messages[: last_user + 1]
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    num_clips = sum(part["type"] == "audio" for part in parts)
    return renderer.render_chat_prompt(messages, [c.num_samples for c in record.clips[:num_clips]], record.origin)


if __name__ == "__main__":
    main()
