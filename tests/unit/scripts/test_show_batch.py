from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.show_batch import main
from tests.sets import pretrain_set
from tests.toy_tokenizer import toy_tokenizer


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    settings = {
        "data.train": pretrain_set(tmp_path / "set"),
        "data.cache_dir": tmp_path / "cache",
        "run.dir": tmp_path / "run",
        "run.epochs": 1,
        "model": "tiny",
        "batching.llm_tokens_per_bin": 400,
        "batching.encoder_frames_per_bin": 1500,
        "batching.bins_per_step": 2,
        "batching.window_samples": 24,
        "tracking.progress_bar": False,
    }
    return ["--tokenizer", str(tmp_path / "tokenizer"), "--", *(f"{name}={value}" for name, value in settings.items())]


def test_an_epoch_shows_every_key_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *arguments]) == 0
    num_steps = int(re.search(r"step 0 of (\d+)", capsys.readouterr().out)[1])
    assert main(["pretrain", "--step", *map(str, range(num_steps)), *arguments]) == 0
    shown = capsys.readouterr().out
    assert sorted(re.findall(r"p-\d+", shown)) == sorted(f"p-{number}" for number in range(24))
    assert "of 400 tokens" in shown


def test_ranks_share_a_step(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    keys = []
    for rank in ("0", "1"):
        assert main(["pretrain", "--world", "2", "--rank", rank, *arguments]) == 0
        keys.append(set(re.findall(r"p-\d+", capsys.readouterr().out)))
    assert not keys[0] & keys[1]
    assert main(["pretrain", *arguments]) == 0
    assert set(re.findall(r"p-\d+", capsys.readouterr().out)) == keys[0] | keys[1]


@pytest.mark.parametrize("wrong", [["--step", "100000"], ["--world", "3"], ["--world", "2", "--rank", "2"]])
def test_what_cannot_be_shown_is_one_sentence(
    arguments: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *wrong, *arguments]) == 1
    assert capsys.readouterr().err


def test_a_wrong_setting_is_no_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *arguments, "data.trian=x"]) == 1
    assert "data.trian" in capsys.readouterr().err
