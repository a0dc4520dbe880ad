from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import covost2
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts.tasks import task_prompt
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.released_text import language_of
from tests.unit.data_prep.conftest import run, skipped_of, texts_of

VALIDATED = [
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent",
    'c\tcv_1.mp3\t"Hello.\t2\t0\t\t\t',
    "c\tcv_2.mp3\tBack\\\\slash\t2\t0\t\t\t",
    "c\tcv_3.mp3\tThree\t2\t0\t\t\t",
    "c\tcv_4.mp3\tFour\t2\t0\t\t\t",
]
TABLE = [
    "path\ttranslation\tsplit",
    'cv_1.mp3\t\\"你好，\t世界'.replace("\t世界", "\\\t世界") + "\ttrain",
    'cv_2.mp3\t"反斜杠\ttrain_covost',
    "cv_3.mp3\t三\ttest",
    "cv_4.mp3\t四\tdev",
    "cv_9.mp3\t没有\ttrain",
    "cv_5.mp3\tone field too few",
]


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    for number in range(1, 5):
        write_audio(tmp_path / f"cv/en/clips/cv_{number}.mp3", 24_000, seed=number, rate_hz=48_000)
    (tmp_path / "cv/en/validated.tsv").write_text("\n".join(VALIDATED) + "\n", encoding="utf-8")
    (tmp_path / "cv/en/covost_v2.en_zh-CN.tsv").write_text("\n".join(TABLE) + "\n", encoding="utf-8")
    return tmp_path / "cv"


def test_joins_both_tables_and_both_train_tags(release: Path, tmp_path: Path) -> None:
    run(covost2, release, tmp_path / "out")
    folder = tmp_path / "out" / "covost2_en_zh-CN_train"
    assert texts_of(folder) == {"en_zh-CN/cv_1": '"你好，\t世界', "en_zh-CN/cv_2": '"反斜杠'}
    record = ShardSet.open(folder).record(1)
    assert (record.task, record.audio_language, record.text_language) == ("translate", "en", "zh")
    assert record.extra == {"transcript": "Back\\slash"}
    assert skipped_of(folder) == {
        "en_zh-CN/cv_9": "not in validated.tsv",
        "en_zh-CN/line-7": "covost_v2.en_zh-CN.tsv line 7: 2 fields, not 3",
    }
    assert texts_of(tmp_path / "out" / "covost2_en_zh-CN_test") == {"en_zh-CN/cv_3": "三"}
    assert texts_of(tmp_path / "out" / "covost2_en_zh-CN_dev") == {"en_zh-CN/cv_4": "四"}


def test_every_direction_can_be_prompted() -> None:
    assert len(set(covost2.PAIRS)) == 36
    assert sum(pair.startswith("en_") for pair in covost2.PAIRS) == 15
    for pair in covost2.PAIRS:
        source, target = (language_of(locale) for locale in pair.split("_"))
        assert task_prompt("translate", audio_language=source, text_language=target).target_tag == f"<|{source}|>"


def test_says_which_table_is_missing(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no covost_v2\.en_de\.tsv"):
        run(covost2, release, tmp_path / "out", "--pairs", "en_zh-CN", "en_de")
    (release / "en/validated.tsv").unlink()
    with pytest.raises(ConfigError, match=r"has no validated.tsv"):
        run(covost2, release, tmp_path / "out")
