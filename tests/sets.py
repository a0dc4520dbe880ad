"""Small shard sets of synthetic clips, one of each payload."""

from __future__ import annotations

from pathlib import Path

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.writer import ShardWriter
from tests.builders import noise_clip

LANGUAGES = ("en", "es", "fr")
_SHARED = {"source": "synthetic", "license": "CC0-1.0"}


def _clip(index: int) -> bytes:
    return encode_flac(noise_clip(4_000 + 977 * (index % 13), seed=index))


def pretrain_set(folder: Path, num_samples: int = 24, split: str = "train") -> Path:
    """Transcription and translation of noise."""
    with ShardWriter(folder, folder.name, split=split, license="CC0-1.0") as writer:
        for index in range(num_samples):
            task = ("transcribe", "translate")[index % 2]
            metadata = {
                "task": task,
                "audio_language": LANGUAGES[index % 3],
                "text_language": "en" if task == "translate" else LANGUAGES[index % 3],
                "text": f"please press {index} now" + " again" * (index % 4),
            }
            writer.write(f"p-{index}", [(_clip(index), "flac")], {**_SHARED, "split": split, **metadata})
    return folder


def _messages(index: int) -> list[dict[str, object]]:
    audio: list[dict[str, str]] = [{"type": "audio"}]
    if index % 3 == 1:
        audio.append({"type": "text", "text": "Which language is spoken?"})
    if index % 3 == 2:  # no audio at all: every rank must still make the same calls
        return [{"role": "user", "content": f"Say {index}."}]
    return [{"role": "user", "content": audio}]


def _clips(index: int) -> list[tuple[bytes, str]]:
    return [] if index % 3 == 2 else [(_clip(index), "flac")]


def chat_set(folder: Path, num_samples: int = 24, split: str = "train") -> Path:
    """Voice chat, audio analysis and text only, mixed."""
    with ShardWriter(folder, folder.name, split=split, license="CC0-1.0") as writer:
        for index in range(num_samples):
            answer = {"role": "assistant", "content": f"I heard {index}." + " Indeed." * (index % 3)}
            metadata = {**_SHARED, "split": split, "messages": [*_messages(index), answer]}
            writer.write(f"c-{index}", _clips(index), metadata)
    return folder


def preference_set(folder: Path, num_samples: int = 24, split: str = "train") -> Path:
    """A right and a wrong answer each."""
    with ShardWriter(folder, folder.name, split=split, license="CC0-1.0") as writer:
        for index in range(num_samples):
            metadata = {
                **_SHARED,
                "split": split,
                "messages": _messages(index),
                "chosen": f"yes {index}",
                "rejected": "no no" + " never" * (index % 4),
            }
            writer.write(f"d-{index}", _clips(index), metadata)
    return folder
