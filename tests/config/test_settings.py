"""The schema of settings: frozen, described, and what identifies a run."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from groundray import config
from groundray.config import load
from groundray.config.settings import AcceleratorType


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "minimal.yaml"
    file.write_text("stages: [grounding]\ngrounding: {train: shards/train, val: shards/val, batch_size: 8}\n")
    return file


@pytest.mark.parametrize(("name", "field"), list(config.fields()))
def test_every_setting_and_section_has_a_description(name: str, field: FieldInfo) -> None:
    section = config.section_of(field)
    text = section.__doc__ if section else field.description
    assert text
    assert len(text.split()) > 1
    if section is None:
        assert not text.endswith(".")
        assert "(default" not in text  # which help adds


def test_settings_are_frozen(minimal: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(minimal).run.seed = 2  # type: ignore[misc]


def test_identity_excludes_settings_that_may_change_on_resume(minimal: Path) -> None:
    here = load(minimal, ["--scaling.chunks", "2"])
    elsewhere = load(minimal, ["--scaling.chunks", "2", "--scaling.num_workers", "2", "--run.storage", "/other"])
    hotter = load(minimal, ["--scaling.chunks", "2", "--grounding.temperature", "0.5"])
    assert here.identity() == elsewhere.identity()
    assert here.identity() != hotter.identity()


def test_worker_counts_are_those_in_range_that_split_the_chunks(minimal: Path) -> None:
    settings = load(minimal, ["--scaling.num_workers", "[1,4]"])
    assert (settings.scaling.min_workers, settings.scaling.max_workers, settings.chunks) == (1, 4, 4)
    assert settings.worker_counts == (1, 2, 4)
    assert load(minimal, ["--scaling.num_workers", "2"]).worker_counts == (2,)
    assert load(minimal, ["--scaling.num_workers", "0"]).worker_counts == (0,)


def test_settings_of_earlier_versions_are_read() -> None:
    """`mask_fraction` was named `mask_share`: stored settings of earlier runs and models have that name."""
    text = config.MaskedLanguage(**{"train": "t", "val": "v", "batch_size": 8, "mask_share": 0.3})
    assert text.mask_fraction == 0.3


@pytest.mark.parametrize("preset", ["demo", "photos"])
def test_runs_of_earlier_versions_have_the_same_identity(preset: str) -> None:
    """Stored settings lack what was added since; the defaults mean what these runs did."""
    added = {
        ("model",): ("initialization",),
        ("model", "relational"): ("operator_initialization",),
        ("language",): ("language_dropout",),
        ("grounding",): ("language_dropout", "val_resize", "alignment", "loss", "learn_temperature"),
        ("relational",): ("language_dropout", "val_resize"),
        ("retrieval",): ("val_resize",),
        **{(stage, "optimizer"): ("first_epoch",) for stage in ("visual", "language", "grounding", "relational")},
        ("retrieval", "optimizer"): ("first_epoch",),
    }
    settings = load(preset)
    stored = settings.model_dump(mode="json")
    for path, names in added.items():
        section = stored
        for key in path:
            section = section[key]
        for name in names:
            del section[name]
    assert config.Settings(**stored).identity() == settings.identity()


def test_identity_lacks_what_was_added_later_unless_it_is_set(minimal: Path) -> None:
    """A run's, a sweep's and an attempt's record of it were written without."""
    before = load(minimal).identity()
    later = (
        "schedule",
        "final_fraction",
        "head_lr",
        "ema",
        "lora",
        "alignment",
        "loss",
        "learn_temperature",
        "patience",
    )
    assert not [name for name in before if name.rpartition(".")[2] in later]
    cosine = load(minimal, ["--grounding.optimizer.schedule=cosine"]).identity()
    assert cosine == before | {"grounding.optimizer.schedule": "cosine"}


def test_a_run_of_the_earlier_preset_paper_is_told_what_differs() -> None:
    """Its stored settings lack what the preset now sets: it resumes with these settings, or another run begins."""
    now = load("paper")
    stored = now.model_dump(mode="json")
    del stored["grounding"]["language_dropout"], stored["model"]["initialization"], stored["retrieval"]["val_resize"]
    lines = config.differences(config.Settings(**stored).identity(), now.identity())
    assert sorted(line.strip() for line in lines) == [
        "grounding.language_dropout: None stored, 0.3 now",
        "model.initialization: 'identity' stored, 'pytorch' now",
        "retrieval.val_resize: None stored, 256 now",
    ]


def test_objectives_that_make_no_sense_are_refused(minimal: Path) -> None:
    for words, message in {
        ("--grounding.alignment=pooled", "--grounding.similarity=dot"): "expected cosine with alignment pooled, .*dot",
        ("--grounding.learn_temperature=true", "--grounding.temperature=0.009"): "at least 0.01, .* got 0.009: raise",
        ("--grounding.loss=sigmoid", "--grounding.temperature=0.001"): "or set learn_temperature false",
        ("--grounding.loss=siglip",): "'nt_xent' or 'sigmoid', got 'siglip'",
    }.items():
        with pytest.raises(config.SettingsError, match=message):
            load(minimal, list(words))


def test_an_objective_is_one_setting(minimal: Path) -> None:
    """Pooled vectors are compared by cosine, and the sigmoid loss learns its temperature, unless told otherwise."""
    pooled = load(minimal, ["--grounding.alignment=pooled"]).stage("grounding")
    assert (pooled.similarity, pooled.learns_temperature) == ("cosine", False)
    sigmoid = load(minimal, ["--grounding.loss=sigmoid"]).stage("grounding")
    assert (sigmoid.similarity, sigmoid.learns_temperature) == ("dot", True)
    fixed = ["--grounding.loss=sigmoid", "--grounding.learn_temperature=false", "--grounding.temperature=0.001"]
    assert not load(minimal, fixed).stage("grounding").learns_temperature
    assert config.Settings(**load(minimal, ["--grounding.alignment=pooled"]).model_dump()).stage("grounding") == pooled


def test_types_of_gpus_are_named_as_by_ray(minimal: Path) -> None:
    from ray.util.accelerators import accelerators

    names = {name for constant, name in vars(accelerators).items() if constant.startswith("NVIDIA_")}
    assert set(get_args(AcceleratorType)) == names
    with pytest.raises(config.SettingsError, match=r"scaling.accelerator_type: .*got 'H10O' \(did you mean 'H100'\?\)"):
        load(minimal, ["--scaling.use_gpu=true", "--scaling.accelerator_type=H10O"])
    with pytest.raises(config.SettingsError, match="expected use_gpu true with it, got H100 and use_gpu false"):
        load(minimal, ["--scaling.accelerator_type=H100"])
    typed = load(minimal, ["--scaling.use_gpu=true", "--scaling.accelerator_type=H100"])
    assert typed.identity() == load(minimal).identity()


def test_eight_workers_share_the_batches_of_the_preset_paper() -> None:
    settings = load("paper", ["--scaling.num_workers=8", "--scaling.chunks=8"])
    assert [settings.stage(name).batch_size % 8 for name in ("visual", "grounding")] == [0, 4]
    assert settings.worker_counts == (8,)
