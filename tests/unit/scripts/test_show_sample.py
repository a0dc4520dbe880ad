from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.shards.writer import ShardWriter
from scripts.show_sample import main
from tests.toy_tokenizer import toy_tokenizer


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    clip = (encode_flac(np.zeros(48_000, np.float32)), "flac")
    user = {"role": "user", "content": [{"type": "audio"}]}
    with ShardWriter(tmp_path / "set", "toy", split="train", license="CC0-1.0") as writer:
        writer.write("a", [clip], {"messages": [user], "chosen": "Yes", "rejected": "No", "source": "toy"})
        writer.write(
            "b", [clip], {"messages": [user, {"role": "assistant", "content": "Glass [or not]."}], "source": "toy"}
        )
    return ["--tokenizer", str(tmp_path / "tokenizer"), "--shards", str(tmp_path / "set")]


def test_supervised_text_is_green_and_audio_is_a_label(arguments: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*arguments, "--key", "b"]) == 0
    shown = capsys.readouterr().out
    assert "[audio 1: 75 tokens, 3.00 s]" in shown
    assert "\x1b[1;32mGlass [or not].<|im_end|>\x1b[0m" in shown


def test_preference_shows_both_answers(arguments: list[str], capsys) -> None:
    assert main([*arguments, "--index", "0", "--ids"]) == 0
    shown = capsys.readouterr().out
    assert "chosen: Yes<|im_end|>" in shown
    assert "rejected: No<|im_end|>" in shown


@pytest.mark.parametrize("which", [["--key", "c"], ["--index", "2"], ["--index", "-1"]])
def test_a_sample_that_is_not_there_is_one_sentence(arguments: list[str], which: list[str], capsys) -> None:
    assert main([*arguments, *which]) == 1
    assert which[1] in capsys.readouterr().err
