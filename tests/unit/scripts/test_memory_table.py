"""The table of memory."""

from __future__ import annotations

import json

import pytest

from scripts.memory import main


def test_the_7b_needs_its_states_sharded_to_train_whole_on_eight_gpus(tmp_path, capsys):
    assert main(["--world", "8", "64", "--json", str(tmp_path / "uses.json")]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    fits = {(row[1].strip(), row[2].strip()): row[-2].strip() for row in rows}
    assert fits["8", "auto (DDP)"] == fits["64", "auto (DDP)"] == "no"
    assert fits["8", "zero1"] == fits["8", "zero3"] == fits["64", "zero3_hpz"] == "yes"
    assert ("8", "zero3_hpz") not in fits
    found = json.loads((tmp_path / "uses.json").read_text())
    assert found[0]["weights"] == pytest.approx(2 * 8.4e9, rel=0.01)


def test_lora_fits_without_sharding(capsys):
    assert main(["--trains", "llm", "--lora", "8", "--world", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("yes |")


def test_a_models_folder(workshop, capsys):
    assert main(["--model", str(workshop.folder / "model"), "--world", "1"]) == 0
    with pytest.raises(SystemExit, match=r"no folder with a config\.json"):
        main(["--model", "nowhere"])
