#!/usr/bin/env python
"""IEMOCAP: Session{1..5}/sentences/wav/{dialog}/{utterance}.wav, labels and texts per dialogue (licence by request).

Makes iemocap_session{1..5}, one set a session, because it is evaluated by leaving a session (two speakers) out: choose
the sets to train on and the one to test on. Emotion follows the four-class convention (excited counts as happy); other
labels are left out of that task and counted. Every utterance with a text is transcribed, unless --emotion-only.

    python data_prep/iemocap.py --input /corpora/IEMOCAP_full_release --output data
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.prepare import (
    SampleSpec,
    SetOptions,
    corpus_arguments,
    read_audio_file,
    run_corpus,
    write_dataset,
)

REVISION = 1
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
LABEL = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\S+)\t\[[\d., ]+\]\s*")
TEXT = re.compile(r"(Ses\S+) \[[\d.]+-[\d.]+\]: (.*)")
STAGE_DIRECTION = re.compile(r"\[[A-Z_ ]+\]")


def read_labels(path: Path) -> dict[str, str]:
    """Utterance -> agreed label. The lines between, of single raters, begin with C- or A- and are not labels."""
    lines = path.read_text(encoding="utf-8").splitlines()
    matches = [LABEL.fullmatch(line) for line in lines if line.startswith("[")]
    return {match[1]: match[2] for match in matches if match}


def read_texts(path: Path) -> dict[str, str]:
    """Utterance -> text; [LAUGHTER] and its like are not spoken."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    matches = [TEXT.fullmatch(line.strip()) for line in lines]
    return {match[1]: " ".join(STAGE_DIRECTION.sub(" ", match[2]).split()) for match in matches if match}


def samples_of(session: Path, *, emotion_only: bool = False) -> Iterator[SampleSpec]:
    """Every labelled utterance of a session."""
    for path in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
        if path.name.startswith("._"):
            continue
        texts = read_texts(session / "dialog" / "transcriptions" / path.name)
        for utterance, label in read_labels(path).items():
            wav = session / "sentences" / "wav" / path.stem / f"{utterance}.wav"
            problem = None if wav.is_file() else "label without a recording"
            reason = None if label in EMOTIONS else f"label outside the four classes: {label}"
            shared = {
                "audio_language": "en",
                "text_language": "en",
                "source": "iemocap",
                "speaker": _speaker(utterance),
            }
            emotion = {**shared, "task": "emotion", "text": EMOTIONS.get(label, label), "label": label}
            yield SampleSpec(f"emotion/{utterance}", emotion, (str(wav),), reason, problem)
            if not emotion_only:
                text = texts.get(utterance, "")
                said = {**shared, "task": "transcribe", "text": text}
                yield SampleSpec(
                    f"transcribe/{utterance}", said, (str(wav),), None if text else "no transcript", problem
                )


def _speaker(utterance: str) -> str:
    """Ses01F_impro01_M003 is said by the man of session 1; the letter after the session is who wears the markers."""
    return f"{utterance[:5]}{utterance.rpartition('_')[2][:1]}"


def prepare(args: argparse.Namespace) -> None:
    """Write one set a session."""
    for number in args.sessions:
        session = args.input / f"Session{number}"
        if not (session / "dialog" / "EmoEvaluation").is_dir():
            raise ConfigError(f"'{session}' has no dialog/EmoEvaluation; expected the released tree")
        options = SetOptions.from_arguments(
            args,
            name=f"iemocap_session{number}",
            split="test" if number == args.test_session else "train",
            license="IEMOCAP licence (by request)",
            recipe={"corpus": "iemocap", "revision": REVISION, "session": number, "emotion_only": args.emotion_only},
        )
        write_dataset(samples_of(session, emotion_only=args.emotion_only), read_audio_file, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the choice of sessions."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder that holds Session1 to Session5")
    parser.add_argument("--sessions", nargs="+", type=int, choices=range(1, 6), default=range(1, 6), help="to prepare")
    parser.add_argument("--test-session", type=int, choices=range(1, 6), default=5, help="the one marked as test")
    parser.add_argument("--emotion-only", action="store_true", help="no transcripts")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
