"""The corpora inside Debian packages, on small trees laid out like the unpacked packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from data_prep import festvox_ru, fillets, ktuberling, sounds, tuxpaint
from data_prep.held_out import SPLITS, bucket_split
from data_prep.sound_rules import SOUND_PACKAGES
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of, tone

WriteAudio = Callable[..., Path]


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[ModuleType, str, list[str]], Path]:
    """Makes empty .deb files and the folder into which they would have been unpacked."""

    def make(module: ModuleType, corpus: str, packages: list[str]) -> Path:
        (tmp_path / "debs").mkdir(exist_ok=True)
        folder = tmp_path / "out" / "cache" / f"{corpus}_unpacked"
        for name in packages:
            (tmp_path / "debs" / f"{name}_1-1_all.deb").touch()
            (folder / name).mkdir(parents=True)
        return folder

    return make


def sets_of(tmp_path: Path, corpus: str) -> dict[str, dict[str, str]]:
    folders = {split: tmp_path / "out" / f"{corpus}_pretrain_{split}" for split in SPLITS}
    return {split: texts_of(folder) for split, folder in folders.items() if folder.exists()}


def skips_of(tmp_path: Path, corpus: str) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for split in SPLITS:
        folder = tmp_path / "out" / f"{corpus}_pretrain_{split}"
        if folder.exists():
            reasons |= skipped_of(folder)
    return reasons


def level_of(split: str, number: int = 0) -> str:
    names = (f"level{n}" for n in range(1000))
    return [name for name in names if bucket_split(name, dev_percent=6) == split][number]


def test_fillets(tmp_path: Path, unpacked: Callable[..., Path], write_audio: WriteAudio) -> None:
    folder = unpacked(fillets, "fillets", list(fillets.PACKAGES))
    train, test = level_of("train"), level_of("test")
    script = folder / "fillets-ng-data" / fillets.GAME / "script"
    voices = folder / "fillets-ng-data-cs" / fillets.GAME / "sound"
    lines = {
        train: 'dialogId("a-v-one", "font_big", "Say \\"hi\\".")\ndialogStr(\n"Řekni \\"ahoj\\".")\n'
        '-- dialogId("old", "font_big", "Old")\n'
        'dialogId("no-line", "font_small", "Nothing")\ndialogStr("")\n'
        'dialogId("same", "font_small", "No.")\ndialogStr("Ne.")\n',
        test: 'dialogId("t-m-ne", "font_small", "No!")\ndialogStr("NE!")\n',
    }
    for level, source in lines.items():
        (script / level).mkdir(parents=True)
        (script / level / "dialogs_cs.lua").write_text(source, encoding="utf-8")
        (script / level / "dialogs_de.lua").write_text(source.replace("Řekni", "Sag"), encoding="utf-8")
    # 22.05 kHz ogg as shipped; one below a part of its level, one under two names, one without a line.
    write_audio(voices / train / "part" / "cs" / "a-v-one.ogg", 22_050, 1, rate_hz=22_050)
    write_audio(voices / train / "cs" / "no-line.ogg", 22_050, 2, rate_hz=22_050)
    write_audio(voices / train / "cs" / "same.ogg", 22_050, 3, rate_hz=22_050)
    write_audio(voices / train / "cs" / "old.ogg", 22_050, 4, rate_hz=22_050)
    write_audio(voices / test / "cs" / "t-m-ne.ogg", 22_050, 5, rate_hz=22_050)
    run(fillets, tmp_path / "debs", tmp_path / "out", "--translate-into", "en", "de")
    found = sets_of(tmp_path, "fillets")
    assert found["train"] == {
        f"transcribe/cs/{train}/part/a-v-one": 'Řekni "ahoj".',
        f"translate/cs/en/{train}/part/a-v-one": 'Say "hi".',
        f"translate/cs/de/{train}/part/a-v-one": 'Sag "ahoj".',
    }
    assert len(found["test"]) == 3
    assert skips_of(tmp_path, "fillets") == {
        f"transcribe/cs/{train}/no-line": "no cs text",
        f"transcribe/cs/{train}/old": "recording without a line",
        f"transcribe/cs/{train}/same": "same text in test",
        f"translate/cs/en/{train}/same": "same text in test",
        f"translate/cs/de/{train}/same": "same text in test",
    }
    record = ShardSet.open(tmp_path / "out" / "fillets_pretrain_test").record(0)
    assert (record.license, record.extra["voice"], record.extra["level"]) == (fillets.LICENSE, "small fish", test)
    assert abs(record.clips[0].num_samples - 16_000) <= 1


def test_tuxpaint(tmp_path: Path, unpacked: Callable[..., Path], write_audio: WriteAudio) -> None:
    root = unpacked(tuxpaint, "tuxpaint", list(tuxpaint.PACKAGES)) / tuxpaint.STAMPS
    write_audio(root / "animals" / "cat_desc_fr.ogg", 8000, 1, rate_hz=44_100)
    write_audio(root / "animals" / "cat_desc_pt_BR.wav", 8000, 2, rate_hz=44_100)
    write_audio(root / "animals" / "cat_desc_da.ogg.ogg", 8000, 3, rate_hz=44_100)
    write_audio(root / "animals" / "cat_desc.ogg", 8000, 4, rate_hz=44_100)
    write_audio(root / "animals" / "cat.ogg", 8000, 5, rate_hz=44_100)
    write_audio(root / "animals" / "cat_desc_ml.ogg", 8000, 6, rate_hz=44_100)
    write_audio(root / "animals" / "cat_desc_nl.ogg", 8000, 7, rate_hz=44_100)
    write_audio(root / "animals" / "lost_desc_fr.ogg", 8000, 8, rate_hz=44_100)
    (root / "animals" / "cat.txt").write_text(
        "A cat.\nfr.utf8=Un chat.\npt_BR.utf8=Um gato.\nda.utf8=En kat.\nml.utf8=Poocha\nnl.utf8=\n", encoding="utf-8"
    )
    write_audio(root / "symbols" / "math" / "7.ogg", 8000, 9, rate_hz=44_100)
    write_audio(root / "symbols" / "math" / "7_de.ogg", 8000, 10, rate_hz=44_100)
    (root / "symbols" / "math" / "7.txt").write_text("Seven.\nde.utf8=Sieben.\n", encoding="utf-8")
    run(tuxpaint, tmp_path / "debs", tmp_path / "out")
    found = {key: text for texts in sets_of(tmp_path, "tuxpaint").values() for key, text in texts.items()}
    assert [text for key, text in found.items() if key.startswith("transcribe/fr/")] == ["Un chat."]
    assert [text for key, text in found.items() if key.startswith("translate/fr/")] == ["A cat."]
    assert sorted(found.values()) == sorted(
        ["Un chat.", "A cat.", "Um gato.", "A cat.", "En kat.", "A cat.", "A cat.", "Seven.", "Sieben.", "Seven."]
    )
    reasons = sorted(skips_of(tmp_path, "tuxpaint").values())
    assert reasons == [
        "language without a name in prompts/wordings.py: ml",
        "no text file beside the recording",
        "no text in the language of the recording: nl",
    ]


def test_festvox_ru(tmp_path: Path, unpacked: Callable[..., Path], write_audio: WriteAudio) -> None:
    voice = unpacked(festvox_ru, "festvox_ru", list(festvox_ru.PACKAGES)) / festvox_ru.VOICE
    (voice / "etc").mkdir(parents=True)
    lines = {1: "Прядь вол+ос", 91: "Два", 194: "Три", 195: "Нет записи"}
    (voice / "etc/txt.done.data").write_text(
        "".join(f'( ru_{n:04d} "{text}" )\n' for n, text in lines.items()) + "\n", encoding="utf-8"
    )
    for number in (1, 91, 194):
        write_audio(voice / "wav" / f"ru_{number:04d}.wav", 4000, number)
    run(festvox_ru, tmp_path / "debs", tmp_path / "out")
    assert sets_of(tmp_path, "festvox_ru") == {
        "train": {"ru_0001": "Прядь волос"},
        "dev": {"ru_0091": "Два"},
        "test": {"ru_0194": "Три"},
    }
    assert skips_of(tmp_path, "festvox_ru") == {"ru_0195": "transcript without a recording"}


def test_festvox_ru_refuses_another_form(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/txt.done.data").write_text("ru_0001 text\n")
    with pytest.raises(ConfigError, match="not of the form"):
        list(festvox_ru.samples_of(tmp_path))


def test_ktuberling(tmp_path: Path, unpacked: Callable[..., Path], write_audio: WriteAudio) -> None:
    root = unpacked(ktuberling, "ktuberling", list(ktuberling.PACKAGES)) / ktuberling.SOUNDS
    names = ["moon_rocket", "pizzeria_olive3", "tux-wow", "gone", "egypt_sphynx"]
    for seed, name in enumerate(names):
        if name != "gone":
            write_audio(root / "fr" / f"{name}.wav", 4000, seed, rate_hz=22_050)
    write_audio(root / "wa" / "x.ogg", 8000, 9, rate_hz=44_100)
    entries = "".join(f'<sound name="{name}" file="fr/{name}.wav" />' for name in names)
    (root / "fr.soundtheme").write_text(
        f'<language code="fr">{entries}<sound name="out" file="../../x.wav"/></language>'
    )
    (root / "wa.soundtheme").write_text('<language code="wa"><sound name="eye" file="wa/x.ogg"/></language>')
    run(ktuberling, tmp_path / "debs", tmp_path / "out")
    found = {key: text for texts in sets_of(tmp_path, "ktuberling").values() for key, text in texts.items()}
    assert found == {
        "translate/fr/moon_rocket": "rocket",
        "translate/fr/pizzeria_olive3": "olive",
        "translate/fr/egypt_sphynx": "sphinx",
    }
    assert skips_of(tmp_path, "ktuberling") == {
        "translate/fr/tux-wow": "name that is no word: tux-wow",
        "translate/fr/gone": "no recording: fr/gone.wav",
        "translate/fr/out": "no recording: ../../x.wav",
        "translate/wa/eye": "language without a name in prompts/wordings.py: wa",
    }


def test_ktuberling_refuses_entities(tmp_path: Path) -> None:
    (tmp_path / "fr.soundtheme").write_text('<!DOCTYPE x [<!ENTITY a "aa">]><language/>')
    with pytest.raises(ConfigError, match="entities"):
        ktuberling.read_theme(tmp_path / "fr.soundtheme")


def test_sounds(tmp_path: Path, unpacked: Callable[..., Path], write_audio: WriteAudio) -> None:
    folder = unpacked(sounds, "sounds", [package.name for package in SOUND_PACKAGES])
    scratch = folder / "scratch/usr/share/scratch/Media/Sounds"
    stamps = folder / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    theme = folder / "sound-theme-freedesktop/usr/share/sounds"
    kits = folder / "hydrogen-drumkits/usr/share/hydrogen/data/drumkits"
    write_audio(scratch / "Animal" / "Dog1.wav", 8000, 1, rate_hz=22_050)
    write_audio(scratch / "Animal" / "Dog2.mp3", 8000, 2, rate_hz=44_100)
    write_audio(scratch / "Effects" / "BellToll.wav", 8000, 3)
    write_audio(scratch / "Effects" / "Zorp.wav", 8000, 4)
    write_audio(stamps / "animals/mammals/dogs" / "dog.ogg", 8000, 5, rate_hz=44_100)
    write_audio(stamps / "animals/mammals/dogs" / "dog_desc_fr.ogg", 8000, 6, rate_hz=44_100)
    write_audio(kits / "My Kit 1.0" / "Kick-1.flac", 8000, 7, rate_hz=44_100)
    (kits / "My Kit 1.0" / "Kick-2.flac").write_bytes((kits / "My Kit 1.0" / "Kick-1.flac").read_bytes())
    write_audio(kits / "My Kit 1.0" / "Snare-1.aiff", 8000, 8, rate_hz=44_100)
    theme.mkdir(parents=True)
    soundfile.write(theme / "bell.oga", tone(8000, 9), 44_100, format="OGG")
    run(sounds, tmp_path / "debs", tmp_path / "out")
    found = sets_of(tmp_path, "sounds")
    # Of a label in two packages, the package with fewer clips is the test; a tie goes by the name.
    assert set(found["test"].values()) - {"kick drum"} == {"bell", "dog"}
    assert any("tuxpaint" in key for key in found["test"])
    rest = [text for split in ("train", "dev") for text in found.get(split, {}).values()]
    assert sorted(rest + list(found["test"].values())) == ["bell", "bell", "dog", "dog", "dog", "kick drum"]
    reasons = sorted(reason.partition(":")[0] for reason in skips_of(tmp_path, "sounds").values())
    assert reasons == ["AIFF is no encoding of the contract", "no rule for this name", "same audio in the same set"]


@pytest.mark.parametrize(
    ("package", "name", "label"),
    [
        ("hydrogen-drumkits", "/Audiophob/104227__minorr__hhat-paiste-302-14-open-p", "hi-hat"),
        ("hydrogen-drumkits", "/ForzeeStereo/SnareRim-2", "snare drum"),
        ("hydrogen-drumkits", "/The Black Pearl 1.0/SabianHatClosed-Hardest", "hi-hat"),
        ("hydrogen-drumkits", "/HardElectro1/emptySample", None),
        ("sonic-pi-samples", "/sonic-pi/samples/bd_haus", "kick drum"),
        ("wesnoth-1.16-data", "/1.16/data/core/sounds/human-female-hit-2", "cry of pain"),
        ("wesnoth-1.16-data", "/1.16/data/core/sounds/bowels", None),
        ("tuxpaint-stamps-default", "/animals/birds/rooster", "rooster"),
    ],
)
def test_rules(package: str, name: str, label: str | None) -> None:
    rules = next(entry.rules for entry in SOUND_PACKAGES if entry.name == package)
    assert sounds.label_of(name, rules) == label
