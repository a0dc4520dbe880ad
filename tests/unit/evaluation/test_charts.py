from __future__ import annotations

import math
from xml.etree import ElementTree

from qwen_audio_train.evaluation.charts import StageCurves, loss_chart, reward_chart

CURVES = StageCurves(
    stage="dpo",
    loss=[(step, 0.7 - step / 200) for step in range(60)],
    held_out_loss=[(20, 0.7), (40, math.nan), (50, 0.6)],
    learning_rate=[(step, 1e-4) for step in range(60)],
    reward_accuracy=[(0, 0.5), (50, 0.9)],
    reward_margin=[(0, 0.0), (50, 1.5)],
)


def parsed(drawing: str) -> ElementTree.Element:
    # HTML knows the prefix of xlink:href by itself; a parser of XML does not.
    return ElementTree.fromstring(drawing.replace("xlink:href", "href"))


def test_loss_chart_stands_alone_and_takes_the_pages_colours() -> None:
    drawing = loss_chart(CURVES, 'loss of "dpo" <stage>')
    root = parsed(drawing)
    assert root.attrib["aria-label"] == 'loss of "dpo" <stage>'
    assert "http" not in drawing
    assert "#01fe0" not in drawing
    for colour in ("--loss", "--held-out", "--rate", "--grid"):
        assert f"var({colour})" in drawing
    assert "held-out" in "".join(root.itertext())


def test_short_and_bare_curves_are_drawn() -> None:
    for loss in ([(1, 0.5)], [(1, 0.5), (2, math.nan)], [(step, 1.0) for step in range(40)]):
        parsed(loss_chart(StageCurves(stage="sft", loss=loss), ""))
    parsed(reward_chart(StageCurves(stage="dpo", loss=[], reward_accuracy=[(1, 0.5)]), ""))


def test_reward_chart() -> None:
    drawing = reward_chart(CURVES, "rewards")
    text = "".join(parsed(drawing).itertext())
    assert "reward margin" in text
    assert "var(--accuracy)" in drawing
    assert "var(--margin)" in drawing


def test_charts_are_reproducible_and_share_no_clip_ids() -> None:
    first, second = loss_chart(CURVES, ""), reward_chart(CURVES, "")
    assert first == loss_chart(CURVES, "")
    clips = [{path.attrib["id"] for path in parsed(drawing).iter("clipPath")} for drawing in (first, second)]
    assert clips[0]
    assert not clips[0] & clips[1]
