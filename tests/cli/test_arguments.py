"""Help on settings."""

from __future__ import annotations

import re

import pytest

from groundray import config, train
from groundray.cli.arguments import settings_help


def test_help_fits_a_screen_and_lists_every_section(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "82")
    assert train.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 84
    shown = {line.split()[0] for line in lines if line.startswith("  ")}
    assert set(config.Settings.model_fields) <= shown


def test_help_all_shows_every_setting_with_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in config.fields():
        entry = re.search(rf" --{re.escape(name)} (\S+) (.*?)(?= --|$)", text)
        assert entry, name
        assert "(default: " in entry[2], name
        if config.section_of(field) is None:
            assert field.description in entry[2], name
    assert "--run.on_nan {stop,skip} " in text
    assert "--run.start_from str path" in text


def test_help_of_a_section_shows_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help", "grounding"]) == 0
    shown = set(re.findall(r"--([\w.]+)", capsys.readouterr().out)) - {"config"}
    assert shown == {name for name, _ in config.fields() if name.split(".")[0] == "grounding"}


def test_defaults_are_those_of_the_preset() -> None:
    demo, paper = (" ".join(settings_help(preset, "relational").split()) for preset in ("demo", "paper"))
    for text, temperature, layers in ((demo, "1.0", "1"), (paper, "1.0", "2")):
        assert re.search(rf"--relational.temperature float [^(]*\(default: {temperature}\)", text)
        assert re.search(rf"--relational.trains.language_layers {{all,int}} [^(]*\(default: {layers}\)", text)


def test_help_of_an_unknown_section_names_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help", "gronding"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean 'grounding'?" in shown
    assert all(name in shown for name in config.Settings.model_fields)
