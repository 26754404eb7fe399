"""Loading settings: what is read, what is rejected, and what an error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray import config
from groundray.config import SettingsError, load
from groundray.storage.folder import Folder

MINIMAL = """
stages: [grounding]
grounding: {train: shards/train, val: shards/val, batch_size: 8}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "minimal.yaml"
    file.write_text(MINIMAL)
    return file


@pytest.mark.parametrize("preset", ["demo", "modern", "photos", "paper"])
def test_printed_settings_of_a_preset_load_as_the_same_settings(preset: str, tmp_path: Path) -> None:
    settings = load(preset, ["--run.seed", "3"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(settings.to_yaml())
    assert load(printed) == settings
    assert settings.run.seed == 3


def test_arguments_override_the_file(minimal: Path) -> None:
    arguments = ["--grounding.temperature", "0.3", "--grounding.optimizer.betas=0.5,0.75", "--scaling.use_gpu", "true"]
    settings = load(minimal, arguments)
    assert settings.grounding is not None
    assert settings.grounding.temperature == 0.3
    assert settings.grounding.optimizer.betas == (0.5, 0.75)
    assert settings.grounding.batch_size == 8
    assert settings.scaling.use_gpu


def test_null_unsets_a_setting_or_a_section() -> None:
    settings = load("demo", ["--model.language.tokenizer", "null", "--retrieval=null", "--stages", "visual,grounding"])
    assert settings.model.language.tokenizer is None
    assert settings.retrieval is None
    assert settings.stages == ("visual", "grounding")


def test_a_section_can_be_given_as_json() -> None:
    settings = load("demo", ["--grounding.trains", '{"trunk": true}', "--grounding.trains.attention=false"])
    assert settings.grounding is not None
    assert settings.grounding.trains.trunk
    assert not settings.grounding.trains.attention
    assert settings.grounding.trains.language_layers == "all"  # as in the preset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grounding.temperture", "1"], r"--grounding\.temperture .*'grounding\.temperature'.*grounding\.epochs"),
        (["--grnding.epochs=1"], r"--grnding\.epochs .*'grounding\.epochs'"),
        (["--x.y", "1"], r"--x\.y; .*run, stages, .*analysis"),
        (["--grounding.epochs", "none"], r"grounding.epochs: .*integer.* got 'none'"),
        (["--grounding.epochs"], r"--grounding\.epochs: expected one argument"),
        (["--grounding.epochs", "--grounding.batch_size=8"], r"--grounding\.epochs: expected one argument"),
        (["stray"], r"'stray'"),
        (["--grounding.temperature", "-1"], r"greater than 0, got '-1'"),
        (["--grounding", "1"], r"grounding: .*got"),
        (["--grounding", '{"temperture": 1}'], r"grounding\.temperture: .*'temperature'"),
        (["--stages", "grounding,grounding"], r"each name once"),
        (["--stages", "grunding"], r"stages.0: .*'grounding'.* got 'grunding'"),
        (["--scaling.num_workers", "3", "--scaling.chunks", "4"], r"3 workers .* 4 chunks .*use 1, 2, 4"),
        (["--scaling.num_workers", "[3,4]", "--scaling.chunks", "4"], r"3 workers .* 4 chunks .*use 1, 2, 4"),
        (["--scaling.num_workers", "[4,2]"], r"scaling\.num_workers: .*\[MIN, MAX\], got \[4, 2\]"),
        (["--scaling.num_workers", "many"], r"scaling\.num_workers: .*\[MIN, MAX\], got \['many'\]"),
        (["--scaling.chunks", "9"], r"grounding.batch_size: expected at least .* 9 chunks .* got 8"),
        (["--run.name", "../elsewhere"], r"run.name"),
    ],
)
def test_an_unusable_argument_is_named(minimal: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(minimal, arguments)


def test_an_unknown_key_names_its_section_and_the_valid_keys(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text(MINIMAL.replace("batch_size", "batchsize"))
    with pytest.raises(SettingsError) as caught:
        load(file)
    message = str(caught.value)
    assert "grounding.batchsize: unknown key in section 'grounding' (did you mean 'batch_size'?)" in message
    assert "valid here: train, val, epochs, batch_size" in message
    assert "grounding.batch_size: expected a value, got none" in message


def test_a_stage_without_a_section_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("stages: [grounding]")
    with pytest.raises(SettingsError, match="expected a section 'grounding' with at least train and val"):
        load(file)


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(SettingsError, match=r"demo, modern, paper, photos.* got 'phots' \(did you mean 'photos'\?\)"):
        load("phots")


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "\x00"])
def test_a_file_without_settings_is_rejected(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no file .*absent\.yaml"):
        load(tmp_path / "absent.yaml")


def test_cli_args_turn_the_base_into_the_settings() -> None:
    base = load("demo")
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
    settings = config.changed(base, values)
    arguments = config.to_cli_args(settings, base)
    assert load("demo", arguments) == settings
    assert {word for word in arguments if word.startswith("--")} == {f"--{name}" for name in values}
    assert config.to_cli_args(base, base) == []
    adapted = config.changed(base, {"grounding.trains.lora.rank": 2})
    for one, other in ((base, adapted), (adapted, base)):
        assert config.changed(one, {"run.seed": 0}) == one
        assert load("demo", [*config.to_cli_args(one, base), *config.to_cli_args(other, one)]) == other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grounding.temprature": 1.0}, r"did you mean 'grounding.temperature'\?"),
        ({"grounding.temperature": -1.0}, r"grounding.temperature -1.0 cannot be used:\n.*greater than 0, got '-1.0'"),
        ({"scaling.num_workers": 3}, r"3 workers .* 2 chunks"),
    ],
)
def test_an_unusable_change_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config.changed(load("demo"), values)


def test_differences_include_names_of_one_side() -> None:
    assert config.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4}) == [
        "  b: 2 stored, 4 now",
        "  c: 3 stored, None now",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding_of_a_file(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "marked.yaml"
    text = load("demo", ["--run.storage", "größe"]).to_yaml()
    file.write_bytes(text.encode(encoding))
    assert load(file).run.storage == "größe"
    file.write_bytes(b"# gr\xf6\xdfe\n" + text.encode())
    with pytest.raises(SettingsError, match=r"marked\.yaml is not YAML: "):
        load(file)


def test_settings_of_a_run_are_compared_with_their_seal(tmp_path: Path) -> None:
    """A cut file would leave the rest to defaults. A file whose first line is deleted may be edited."""
    settings = load("demo", ["--run.seed=7"])
    folder, file = Folder.at(tmp_path), tmp_path / "config.yaml"
    folder.write_sealed_text(file.name, settings.to_yaml())
    assert load(file) == settings
    sealed = file.read_text()
    header, _, text = sealed.partition("\n")
    for changed in (sealed.replace("seed: 7", "seed: 8"), sealed[: len(sealed) // 2], header):
        file.write_text(changed)
        with pytest.raises(SettingsError, match=rf"{file}: .*checksum.*delete that line"):
            load(file)
    file.write_text(text.replace("seed: 7", "seed: 8"))
    assert load(file).run.seed == 8
