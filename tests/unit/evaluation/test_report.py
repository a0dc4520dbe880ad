from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.evaluation import report
from qwen_audio_train.evaluation.report import ChanceScores, DpoScores, StageScores, Summary, WhisperScores

STAGE_KEYS = ["cer", "wer_en", "bleu", "chrf", "language_id_accuracy", "analysis_form", "voice_chat_form"]


@pytest.fixture
def summary() -> Summary:
    return Summary(
        untrained=StageScores(cer={"en": 1.4, "fr": 1.25}, bleu=0.04),
        pretrain=StageScores(cer={"en": 0.5, "fr": 0.6}, wer_en=0.7, bleu=12.34),
        sft=StageScores(cer={"en": 0.4, "fr": 0.6}, voice_chat_form=0.98),
        dpo=DpoScores(cer={"en": 0.4001, "fr": 0.61}, reward_accuracy=0.93, reward_margin=1.7),
        chance=ChanceScores(cer={"en": 0.8}, language_id_accuracy=0.6, language_id_uniform=0.5),
        whisper_base=WhisperScores(cer={"en": 0.05}, wer_en=0.08),
        seconds={"data": 63.0, "pretrain": 312.5},
    )


def test_shape_of_the_file(tmp_path: Path, summary: Summary) -> None:
    path = tmp_path / "new" / "summary.json"
    report.write_summary(path, summary)
    content = json.loads(path.read_text())
    assert list(content) == ["untrained", "pretrain", "sft", "dpo", "chance", "whisper_base", "seconds"]
    for stage in ("untrained", "pretrain", "sft"):
        assert list(content[stage]) == STAGE_KEYS
    assert list(content["dpo"]) == [*STAGE_KEYS, "reward_accuracy", "reward_margin"]
    assert list(content["whisper_base"]) == ["cer", "wer_en", "num_clips"]
    assert content["dpo"]["reward_margin"] == 1.7
    assert content["untrained"]["wer_en"] is None
    assert content["seconds"] == {"data": 63.0, "pretrain": 312.5}
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]
    assert report.read_summary(path) == summary


def test_an_empty_summary_has_the_whole_shape(tmp_path: Path) -> None:
    report.write_summary(tmp_path / "s.json", Summary())
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["dpo"] == dict.fromkeys([*STAGE_KEYS, "reward_accuracy", "reward_margin"]) | {"cer": {}}
    assert content["chance"]["reward_accuracy"] == 0.5


def test_not_a_number_becomes_null_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diverged = Summary(dpo=DpoScores(cer={"en": float("inf")}, reward_margin=float("nan")))
    with caplog.at_level(logging.WARNING):
        report.write_summary(tmp_path / "s.json", diverged)
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["dpo"]["reward_margin"] is None
    assert content["dpo"]["cer"] == {"en": None}
    assert "summary.dpo.reward_margin is nan" in caplog.text
    assert "summary.dpo.cer.en is inf" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"sft": {"wer": 1}}', '{"extra": 1}', '{"sft": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"s\.json"):
        report.read_summary(path)
    with pytest.raises(ConfigError, match="missing"):
        report.read_summary(tmp_path / "missing.json")


def test_rows_name_the_best_stage_as_printed(summary: Summary) -> None:
    rows = {row.label: row for row in report.rows(summary)}
    assert rows["CER en"].cells == ("0.800", "1.400", "0.500", "0.400", "0.400", "0.050")
    assert rows["CER en"].best is None  # SFT and DPO read the same
    assert rows["WER en"].best is None  # one stage alone is not the best of several
    assert rows["BLEU into English"].cells == ("-", "0.0", "12.3", "-", "-", "-")
    assert rows["BLEU into English"].best == report.COLUMNS.index("pretrain")
    assert rows["CER en"].title.endswith("\N{DOWNWARDS ARROW}")
    assert rows["DPO reward accuracy"].title.endswith("\N{UPWARDS ARROW}")
    assert rows["DPO reward accuracy"].cells == ("0.500", "-", "-", "-", "0.930", "-")


def test_terminal_table(summary: Summary) -> None:
    lines = report.table(summary).splitlines()
    assert max(map(len, lines)) <= 120
    assert "\x1b" not in report.table(summary)
    header = next(line for line in lines if "metric" in line)
    values = next(line for line in lines if "CER fr" in line)
    assert header.split() == ["metric", "chance", "untrained", "pretrain", "SFT", "DPO", "Whisper-base"]
    assert values.split()[3:] == ["-", "1.250", "0.600", "0.600", "0.610", "-"]
    assert header.index("DPO") + 3 == values.index("0.610") + 5  # right-aligned


def test_markdown_table(summary: Summary) -> None:
    lines = report.markdown_table(summary).splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert "| BLEU into English \N{UPWARDS ARROW} | - | 0.0 | **12.3** | - | - | - |" in lines


def test_scores_of_one_model_leave_out_what_was_not_measured():
    text = report.scores_table("sft", report.DpoScores(cer={"en": 0.25}, bleu=12.0))
    assert text.splitlines()[0] == "Scores of sft"
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["0.250", "12.0"]
