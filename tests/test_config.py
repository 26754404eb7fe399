"""Settings: what is read, what is refused, and how an error teaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from groundray import config
from groundray.config import SettingsError, load

MINIMAL = """
stages: [grounding]
grounding: {train: shards/train, val: shards/val, batch_size: 8}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    return file


@pytest.mark.parametrize("preset", ["demo", "photos", "paper"])
def test_the_printed_settings_of_a_preset_give_the_same_run(preset: str, tmp_path: Path) -> None:
    settings = load(preset, ["--run.seed", "3"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(settings.to_yaml())
    assert load(printed) == settings
    assert settings.run.seed == 3


def test_the_command_line_stands_above_the_file(minimal: Path) -> None:
    words = ["--grounding.temperature", "0.3", "--grounding.optimizer.betas=0.5,0.75", "--scaling.use_gpu", "true"]
    settings = load(minimal, words)
    assert settings.grounding is not None
    assert settings.grounding.temperature == 0.3
    assert settings.grounding.optimizer.betas == (0.5, 0.75)
    assert settings.grounding.batch_size == 8
    assert settings.scaling.use_gpu


def test_settings_are_frozen(minimal: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(minimal).run.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grounding.temperture", "1"], r"unknown setting --grounding.temperture \(did you mean 'grounding.temp"),
        (["--grounding.epochs", "none"], r"grounding.epochs: .*integer.* got 'none'"),
        (["--grounding.epochs"], r"--grounding.epochs: expected a value"),
        (["stray"], r"got 'stray' on its own"),
        (["--grounding.temperature", "-1"], r"greater than 0, got '-1'"),
        (["--stages", "grounding,grounding"], r"each stage once"),
        (["--stages", "grunding"], r"stages.0: .*'grounding'.* got 'grunding'"),
        (
            ["--scaling.num_workers", "3", "--scaling.chunks", "4"],
            r"3 workers cannot share 4 chunks evenly: use 1, 2, 4",
        ),
        (
            ["--scaling.num_workers", "[3,4]", "--scaling.chunks", "4"],
            r"3 workers cannot share 4 chunks evenly: use 1, 2, 4",
        ),
        (["--scaling.num_workers", "[4,2]"], r"expected a number of workers, or \[LEAST, MOST\], got \[4, 2\]"),
        (["--scaling.num_workers", "many"], r"expected a number of workers, or \[LEAST, MOST\], got \['many'\]"),
        (["--scaling.chunks", "3"], r"grounding.batch_size: 8 samples cannot be cut into 3 equal chunks"),
        (["--run.name", "../elsewhere"], r"run.name"),
    ],
)
def test_a_bad_word_is_named(minimal: Path, words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(minimal, words)


def test_an_unknown_key_names_its_place_and_the_valid_ones(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text(MINIMAL.replace("batch_size", "batchsize"))
    with pytest.raises(SettingsError) as caught:
        load(file)
    message = str(caught.value)
    assert "grounding.batchsize: unknown key in section 'grounding' (did you mean 'batch_size'?)" in message
    assert "valid here: train, val, epochs, batch_size" in message
    assert "grounding.batch_size: expected a value, got none" in message


def test_a_stage_without_a_section_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("stages: [grounding]")
    with pytest.raises(SettingsError, match="expected a section 'grounding' with at least train and val"):
        load(file)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"demo, paper, photos.* got 'phots' \(did you mean 'photos'\?\)"):
        load("phots")


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "\x00"])
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no file .*absent\.yaml"):
        load(tmp_path / "absent.yaml")


def test_identity_leaves_out_what_may_change_between_attempts(minimal: Path) -> None:
    here = load(minimal, ["--scaling.chunks", "2"])
    elsewhere = load(minimal, ["--scaling.chunks", "2", "--scaling.num_workers", "2", "--run.storage", "/other"])
    hotter = load(minimal, ["--scaling.chunks", "2", "--grounding.temperature", "0.5"])
    assert here.identity() == elsewhere.identity()
    assert here.identity() != hotter.identity()


def test_help_names_every_setting() -> None:
    text = config.help_text()
    for name in ("--run.seed", "--grounding.optimizer.halve_every", "--model.trunk.weights"):
        assert name in text


def test_a_range_of_workers_means_those_that_share_the_chunks(minimal: Path) -> None:
    settings = load(minimal, ["--scaling.num_workers", "[1,4]"])
    assert (settings.scaling.min_workers, settings.scaling.max_workers, settings.chunks) == (1, 4, 4)
    assert settings.worker_counts == (1, 2, 4)
    assert load(minimal, ["--scaling.num_workers", "2"]).worker_counts == (2,)
    assert load(minimal, ["--scaling.num_workers", "0"]).worker_counts == (0,)


def test_words_give_the_settings_that_they_were_made_of() -> None:
    below = load("demo")
    values = {
        "grounding.temperature": 0.03,
        "grounding.optimizer.betas": (0.8, 0.9),
        "grounding.trains.language_layers": 3,
        "stages": ["grounding", "language"],
        "scaling.num_workers": (1, 2),
        "run.start_from": "some where/model",
        "visual.flip": True,
        "model.language.tokenizer": None,
    }
    settings = config.changed(below, values)
    written = config.to_cli_args(settings, below)
    assert load("demo", written) == settings
    assert {word for word in written if word.startswith("--")} == {f"--{name}" for name in values}
    assert config.to_cli_args(below, below) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grounding.temprature": 1.0}, r"did you mean 'grounding.temperature'\?"),
        ({"grounding.temperature": -1.0}, r"grounding.temperature -1.0 cannot be used:\n.*greater than 0, got -1"),
        ({"scaling.num_workers": 3}, r"3 workers cannot share 2 chunks evenly"),
    ],
)
def test_a_change_that_cannot_be_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config.changed(load("demo"), values)


def test_differences_name_what_only_one_side_has() -> None:
    assert config.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4}) == [
        "  b: 2 there, 4 now",
        "  c: 3 there, None now",
    ]
