from __future__ import annotations

import base64
import io
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen_audio_train.evaluation import page
from qwen_audio_train.evaluation.charts import StageCurves
from qwen_audio_train.evaluation.page import Example, write_page
from qwen_audio_train.evaluation.report import DpoScores, Summary, WhisperScores

HOSTILE = '<script>alert("x")</script>'


class Elements(HTMLParser):
    """Every element and its attributes, in order, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def example(key: str, reference: str, answers: dict[str, str], num_samples: int = 3200) -> Example:
    samples = 1.5 * np.sin(np.arange(num_samples, dtype=np.float32) / 9)
    return Example(key=key, language="fr", reference=reference, samples=samples, answers=answers)


SUMMARY = Summary(
    dpo=DpoScores(cer={"en": 0.4, "fr": 0.5}, language_id_accuracy=0.97, reward_accuracy=0.93),
    whisper_base=WhisperScores(cer={"en": 0.1, "fr": 0.2}),
    seconds={"data": 59.96, HOSTILE: 312.0},
)
CURVES = [StageCurves(stage="dpo", loss=[(1, 0.69), (2, 0.5)], reward_accuracy=[(1, 0.5)])]
EXAMPLES = [
    example("clip-1", "bonjour", {"sft": "bonjour", "untrained": "", "whisper_base": "bonsoir"}),
    example(HOSTILE, f"dit {HOSTILE}", {"pretrain": HOSTILE, "sft": f'{HOSTILE}"><img src=x>'}),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    tmp_path = tmp_path_factory.mktemp("page")
    write_page(tmp_path / "run" / "report.html", SUMMARY, CURVES, EXAMPLES, {"machine": HOSTILE}, title=HOSTILE)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report.html"]
    return (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_nothing_is_fetched(written: str) -> None:
    assert "http://" not in written
    assert "https://" not in written
    for tag, attributes in Elements(written).elements:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("xlink:href") or "#").startswith("#")


def test_texts_are_escaped_and_still_there(written: str) -> None:
    assert "<script" not in written.lower()
    assert written.count("&lt;script&gt;") >= 6  # title twice, step, machine, key, reference
    assert HOSTILE in Elements(written).text


def test_each_example_has_its_clip(written: str) -> None:
    players = Elements(written).named("audio")
    assert len(players) == len(EXAMPLES)
    assert all("controls" in player for player in players)
    encoded = (players[0]["src"] or "").removeprefix("data:audio/flac;base64,")
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(encoded, validate=True)))
    assert rate_hz == 16_000
    assert np.abs(samples - np.clip(EXAMPLES[0].samples, -1, 1)).max() < 1e-4


def test_answers_stand_in_the_order_of_stages_with_their_error_rates(written: str) -> None:
    card = written[written.index("<article") : written.index("</article>")]
    titles = re.findall(r"<dt>(.*?)</dt>", card)
    assert titles == ["Reference", "Untrained", "SFT", "Whisper-base"]
    assert re.findall(r'class="rate">(.*?)<', card) == ["1.00", "0.00", "0.29"]
    assert '<span class="empty">empty</span>' in card
    assert "bon<mark>s</mark>o" in card


def test_numbers_of_the_summary(written: str) -> None:
    text = Elements(written).text
    for expected in ("0.45", "Whisper-base itself: 0.15", "97%", "93%", "chance: 50%", "1 min 00 s", "5 min 12 s"):
        assert expected in text
    assert len(Elements(written).named("svg")) == 2


def test_clip_beyond_the_limit_is_told_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page, "MAX_AUDIO_BYTES", 20_000)
    noise = np.random.default_rng(0).uniform(-1, 1, 16_000)
    long = Example(key="long", language="en", reference="a", samples=noise, answers={})
    with caplog.at_level(logging.WARNING):
        write_page(tmp_path / "r.html", Summary(), [], [long, *EXAMPLES], {})
    written = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(Elements(written).named("audio")) == 2
    assert "audio limit is reached" in written
    assert "'long' has no player" in caplog.text


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", Summary(), [], [], {})
    assert "Scores on held-out clips" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_stereo_is_refused(tmp_path: Path) -> None:
    stereo = Example(key="k", language="en", reference="a", samples=np.zeros((10, 2)), answers={})
    with pytest.raises(ValueError, match="mono"):
        write_page(tmp_path / "r.html", Summary(), [], [stereo], {})
    assert not list(tmp_path.iterdir())
