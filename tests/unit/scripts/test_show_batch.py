from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_audio_train.training.dry_run import dry_batches
from scripts.show_batch import main
from tests.sets import chat_set, pretrain_set
from tests.toy_tokenizer import toy_tokenizer

SETTINGS = (
    "model=tiny",
    "batching.llm_tokens_per_bin=400",
    "batching.encoder_frames_per_bin=1500",
    "batching.bins_per_step=2",
    "batching.window_samples=24",
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def tokenizer(tmp_path: Path) -> list[str]:
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return ["--tokenizer", str(tmp_path / "tokenizer")]


@pytest.fixture
def arguments(tokenizer: list[str], tmp_path: Path) -> list[str]:
    data = [f"data.train={pretrain_set(tmp_path / 'set')}", f"data.cache_dir={tmp_path / 'cache'}"]
    return [*SETTINGS, *data, *tokenizer]


def test_an_epoch_shows_every_key_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *arguments]) == 0
    num_steps = int(re.search(r"step 0 of (\d+)", capsys.readouterr().out)[1])
    assert main(["pretrain", *arguments, "--step", *map(str, range(num_steps))]) == 0
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


def test_a_mixture_shows_each_sample_under_its_source_and_with_its_own_lengths(
    tokenizer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = f"a: {{set: {pretrain_set(tmp_path / 'a')}, tasks: [translate], weight: 1}}"
    sets += f", b: {{set: {pretrain_set(tmp_path / 'b', 30)}, weight: 1}}"
    given = [*SETTINGS, f"+data.sources={{{sets}}}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(["pretrain", *given, *tokenizer]) == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^\W*([ab])\W+(\d+)\W+0\W+p-(\d+)\W+(\d+)\W+(\d+)", shown, re.MULTILINE)
    assert {row[0] for row in rows} == {"a", "b"}
    _, batches = dry_batches("pretrain", given, tokenizer[1])
    for name, number, key, tokens, _ in rows:
        assert number == key, "the number is the one in the set"
        source = batches.builder.sources["ab".index(name)]
        place = next(i for i in range(40) if source.number(i) == int(number))
        assert int(tokens) == batches.plan.sources["ab".index(name)].lengths.llm_tokens[place]
    assert all(int(row[1]) % 2 for row in rows if row[0] == "a")
    assert "50.00%" in shown, "the mixture's table"


def test_samples_without_audio(tokenizer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.train={chat_set(tmp_path / 'chat')}", f"data.cache_dir={tmp_path / 'cache'}"]
    given = [*SETTINGS, *data, "model.start_from=hub/previous"]
    assert main(["sft", *given, *tokenizer]) == 0
    assert re.search(r"c-\d+\W+\d+\W+\d+\W+0\W+0\.00", capsys.readouterr().out)


def test_left_out_steps_keep_their_numbers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    skipping = [*arguments, "run.max_steps=3", "data.skip_steps=[[1,2]]"]
    assert main(["pretrain", *skipping, "--step", "2", "4"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"step 2 of 5, epoch \d+ of the mixture, left out by data\.skip_steps$", shown, re.MULTILINE)
    assert re.search(r"step 4 of 5, epoch \d+ of the mixture$", shown, re.MULTILINE)
    assert main(["pretrain", *skipping, "--step", "5"]) == 2


@pytest.mark.parametrize("wrong", [["--step", "100000"], ["--world", "3"], ["--world", "2", "--rank", "2"]])
def test_what_cannot_be_shown_is_one_sentence(
    arguments: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *arguments, *wrong]) == 2
    assert capsys.readouterr().err


def test_a_wrong_setting_is_no_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *arguments, "data.trian=x"]) == 2
    assert "data.trian" in capsys.readouterr().err
