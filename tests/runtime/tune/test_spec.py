"""Sweep specifications: shared stages, settings of each trial, and invalid sweeps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import STAGES, SmallWorld
from servers import Server

from groundray import config
from groundray.config import SettingsError
from groundray.runtime.tune import spec
from groundray.runtime.tune.results import Trial
from groundray.runtime.tune.search_space import parse_spaces
from groundray.runtime.tune.spec import Metric, Search, Sweep
from groundray.sweep import command

RECALL = "grounding/text_to_image/recall@10"


def sweep(words: list[str], *space: str, metric: str = RECALL, search: Search = "grid", seeds: int = 1) -> Sweep:
    settings = config.load("demo", words)
    return Sweep(settings, parse_spaces(space, settings), Metric.parse(metric, None, settings), search, 10, seeds, True)


@pytest.mark.parametrize(
    ("space", "metric", "before", "stages"),
    [
        ("grounding.temperature=choice:0.1,1", RECALL, ("visual", "language"), ("grounding",)),
        ("visual.dropout=choice:0.1,0.2", RECALL, (), ("visual", "language", "grounding")),
        ("data.window=choice:10,20", "language/loss", (), ("visual", "language")),
        (
            "language.mask_fraction=choice:0.1,0.2",
            "relational/predicate/top1",
            ("visual",),
            ("language", "grounding", "relational"),
        ),
    ],
)
def test_stages_that_no_trial_changes_are_trained_once(
    world: SmallWorld, tmp_path: Path, space: str, metric: str, before: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s", stages=STAGES), space, metric=metric)
    one.check()
    assert one.shared_stages == before
    assert one.stages == stages
    settings = one.settings_of({}, "trial-0")
    assert settings.stages == stages
    assert settings.run.start_from == (f"{tmp_path}/s/before/model" if before else None)
    first = one.shared_settings()
    assert (first.stages if first else ()) == before


@pytest.mark.parametrize(("workers", "first"), [("1", (1, 2)), ("2", 2), ("0", 0), ("[1,2]", (1, 2))])
def test_shared_stages_use_the_whole_cluster(world: SmallWorld, tmp_path: Path, workers: str, first: object) -> None:
    words = world.settings(
        f"--run.storage={tmp_path}", "--scaling.chunks=2", f"--scaling.num_workers={workers}", stages=STAGES
    )
    before = sweep(words, "grounding.temperature=choice:0.1,1", metric="grounding/loss").shared_settings()
    assert before is not None
    assert before.scaling.num_workers == first


def test_a_model_to_begin_with_is_every_trials(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.start_from=elsewhere/model")
    assert sweep(words, "grounding.dropout=choice:0,0.1").settings_of({}, "a").run.start_from == "elsewhere/model"


def test_the_best_trials_command_trains_it_again(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s", stages=STAGES)
    one = sweep(words, "grounding.temperature=choice:0.1,1", "grounding.trains.language_layers=choice:1,all")
    values = {"grounding.temperature": 1, "grounding.trains.language_layers": "all"}
    trial = Trial("trial-1", values, seed=7, state="finished", value=0.5)
    preset, *words = command(one, "demo", config.find("demo"), trial)[1:]
    again = config.load(preset, words)
    assert again.identity() == one.settings_of(trial.all_values, trial.name).identity()
    assert again.grounding is not None
    assert again.grounding.trains.language_layers == "all"
    assert again.run.name == "s-best"


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        ("grounding.temperature=choice:1", {"metric": "visual/top1"}, "expected a metric of a stage that is trained"),
        ("grounding.temperature=choice:1", {"metric": "grounding/recal@10"}, "stage grounding reports loss, "),
        ("relational.temperature=choice:1", {}, "is measured without stage relational"),
        ("grounding.temperature=uniform:0.1:1", {}, "--search grid: expected choice:"),
        ("grounding.temperature=uniform:0.1:1", {"search": "tpe", "seeds": 2}, "TPE learns from each trial"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    world: SmallWorld, tmp_path: Path, space: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as error:
        sweep(world.settings(f"--run.storage={tmp_path}"), space, **options).check()
    assert said in str(error.value)


def test_a_metric_is_a_stages(world: SmallWorld) -> None:
    settings = config.load("demo", world.settings())
    for text in ("loss", "grounding"):
        with pytest.raises(SettingsError, match=f"expected STAGE/METRIC such as grounding/loss, .* got '{text}'"):
            Metric.parse(text, None, settings)
    metrics = ("a/loss", "a/b/mean_rank", "a/perplexity", "a/top1")
    orders = {text: Metric.parse(text, None, settings).mode for text in metrics}
    assert orders == {"a/loss": "min", "a/b/mean_rank": "min", "a/perplexity": "min", "a/top1": "max"}
    assert Metric.parse("a/loss", "max", settings).mode == "max"
    assert Metric.parse("a/b/loss:max", None, settings) == Metric("a", "b/loss", "max")
    with pytest.raises(SettingsError, match="--order says max: give one of the two"):
        Metric.parse("a/loss:min", "max", settings)


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"num_samples": 1}, [], "expected --num-samples of at least 2"),
        ({"seeds": 2}, [], "expected --seeds 1, got 2"),
        ({"early_stopping": True}, [], "expected --early-stopping none, got asha"),
        ({"perturb_every": 4}, [], "expected --perturb-every below the 4 of grounding.epochs, got 4"),
        ({"others": (Metric("grounding", "loss", "min"),)}, [], "expected one --metric, got 2"),
        ({}, ["--grounding.patience=2"], "expected grounding.patience null, got 2"),
        ({"spaces": "grounding.batch_size=choice:8,16"}, [], "got grounding.batch_size=choice:8,16"),
        ({"spaces": "grounding.optimizer.kind=choice:adam,sgd"}, [], "may change neither the model nor its batches"),
        ({"spaces": "grounding.optimizer.layer_decay=uniform:0.5:1"}, [], "use --search tpe"),
        ({"spaces": "language.mask_fraction=uniform:0.1:0.5"}, [], "expected rates, temperatures, weights or dropouts"),
        ({"spaces": "grounding.optimizer.weight_decay=choice:0,0.01"}, [], "start above 0, such as at 1e-6"),
        (
            {"spaces": "grounding.optimizer.weight_decay=uniform:0:0.01"},
            [],
            "expected --space grounding.optimizer.weig",
        ),
        ({}, ["--grounding.learn_temperature=true"], "got a learned temperature"),
        ({}, ["--grounding.loss=sigmoid"], "expected grounding.learn_temperature false"),
    ],
)
def test_a_population_that_cannot_be_is_refused(
    world: SmallWorld, tmp_path: Path, changes: dict[str, Any], words: list[str], said: str
) -> None:
    given = world.settings(f"--run.storage={tmp_path}", "--grounding.epochs=4", *words, stages="language,grounding")
    one = replace(sweep(given, "grounding.temperature=uniform:0.1:1", search="pbt"), early_stopping=False)
    if "spaces" in changes:
        changes = {"spaces": parse_spaces([changes["spaces"]], one.settings)}
    with pytest.raises(SettingsError) as error:
        replace(one, **changes).check()
    assert "--search pbt: " in str(error.value)
    assert said in str(error.value)


def test_no_population_begins_at_another_runs_checkpoint(world: SmallWorld, tmp_path: Path) -> None:
    """Its first generation would have no epoch to train, or fewer."""
    source = "--run.continue_from=/runs/a/checkpoints/b"
    refused = {}
    for stages in ("grounding", "language,grounding"):
        given = world.settings(f"--run.storage={tmp_path}", "--grounding.epochs=4", source, stages=stages)
        one = replace(sweep(given, "grounding.temperature=uniform:0.1:1", search="pbt"), early_stopping=False)
        with pytest.raises(SettingsError) as error:
            one.check()
        refused[stages] = str(error.value)
    assert "--search pbt: expected run.continue_from null, got /runs/a/checkpoints/b" in refused["grounding"]
    # that of a stage before the population's, which is trained once, only has to be there
    assert "run.continue_from: expected a checkpoint of stage language" in refused["language,grounding"]


def test_a_decay_above_0_is_swept_by_a_population(world: SmallWorld, tmp_path: Path) -> None:
    given = world.settings(f"--run.storage={tmp_path}", "--grounding.epochs=4")
    one = sweep(given, "grounding.optimizer.weight_decay=choice:0.001,0.01", search="pbt")
    replace(one, early_stopping=False).check()


def test_only_the_first_shared_stage_continues_another_run(world: SmallWorld, tmp_path: Path) -> None:
    source = "--run.continue_from=/runs/a/checkpoints/b"
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s", source, stages="language,grounding")
    one = sweep(words, "grounding.temperature=choice:0.1,1")
    shared = one.shared_settings()
    assert shared is not None
    assert shared.run.continue_from == "/runs/a/checkpoints/b"
    assert one.settings_of({}, "a").run.continue_from is None
    assert one.settings_of({}, "a", "/c/checkpoints/d").run.continue_from == "/c/checkpoints/d"
    alone = sweep(words, "language.mask_fraction=choice:0.1,0.2")
    assert alone.settings_of({}, "a").run.continue_from == "/runs/a/checkpoints/b"


def test_generations_end_at_multiples_and_keep_their_checkpoints(world: SmallWorld, tmp_path: Path) -> None:
    given = world.settings(f"--run.storage={tmp_path}", "--grounding.epochs=7")
    one = replace(sweep(given, "grounding.temperature=uniform:0.1:1", search="pbt"), early_stopping=False)
    one = replace(one, perturb_every=3)
    one.check()
    assert one.generation_ends == (3, 6, 7)
    settings = one.settings_of({"grounding.temperature": 0.2}, "trial-00001-g1", "/x/checkpoints/y")
    assert settings.checkpoints.keep_every == 3
    assert settings.run.continue_from == "/x/checkpoints/y"
    assert one.settings_of({"grounding.temperature": 0.2}, "a").run.continue_from is None


def test_trials_train_the_stages_of_all_their_metrics(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s", stages=STAGES)
    one = sweep(words, "relational.temperature=choice:0.1,1", metric="relational/predicate/top1")
    assert one.shared_stages == ("visual", "language", "grounding")
    loss = Metric("language", "loss", "min")
    several = replace(one, metric=loss, others=(one.metric,), early_stopping=False)
    with pytest.raises(SettingsError, match=r"--metric language/loss: expected a metric of relational, retrieval, got"):
        several.check()  # its language stage would be the same in all trials
    mask = parse_spaces(["language.mask_fraction=choice:0.1,0.2"], one.settings)
    several = replace(several, spaces=(*one.spaces, *mask))
    several.check()
    assert (several.shared_stages, several.last_stage) == (("visual",), "relational")
    assert several.stages == ("language", "grounding", "relational")
    assert several.definition() != replace(several, metric=one.metric, others=(loss,)).definition()


def test_a_stage_alone_is_compared_by_its_best(world: SmallWorld) -> None:
    settings = config.load("demo", world.settings("--grounding.best=image_to_text/recall@5:max"))
    assert Metric.parse("grounding", None, settings) == Metric("grounding", "image_to_text/recall@5", "max")


def test_what_chooses_the_best_can_be_swept(world: SmallWorld) -> None:
    one = sweep(world.settings(), f"grounding.best=choice:loss:min,{RECALL.removeprefix('grounding/')}:max")
    (space,) = one.spaces
    chosen = [one.settings_of({space.name: value}, "trial").stage("grounding").best for value in space.values]
    assert chosen == ["loss:min", "text_to_image/recall@10:max"]


def test_a_name_belongs_to_one_sweep(world: SmallWorld, tmp_path: Path) -> None:
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s"), "grounding.temperature=choice:0.1,1")
    one.claim(resume=True)  # so that one command starts and resumes it
    one.claim(resume=True)
    with pytest.raises(SettingsError, match="holds this sweep already: give --resume"):
        one.claim(resume=False)
    with pytest.raises(SettingsError, match=r"seeds: 1 .*2 now"):
        replace(one, seeds=2).claim(resume=True)
    with pytest.raises(SettingsError, match=r"trials at once: 'as many as fit' .*1 now"):
        replace(one, max_concurrent=1).claim(resume=True)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    taken = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=run"), "grounding.temperature=choice:1")
    with pytest.raises(SettingsError, match="holds a training run: use another"):
        taken.claim(resume=False)


def test_a_population_resumes_with_another_number_of_trials_at_once(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s")
    one = sweep(words, "grounding.temperature=uniform:0.1:1", search="pbt")
    first = one.claim(resume=False)
    assert replace(one, max_concurrent=1).claim(resume=True) == first
    content = one.folder.read_sealed("sweep.json")
    one.folder.write_sealed("sweep.json", {**content, "trials at once": 4})  # as an earlier version wrote it
    assert one.claim(resume=True) == first


def test_a_sweep_keeps_its_id_and_another_in_its_folder_has_another(world: SmallWorld, tmp_path: Path) -> None:
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s"), "grounding.temperature=choice:0.1,1")
    first = one.claim(resume=False)
    assert one.claim(resume=True) == first
    shutil.rmtree(tmp_path / "s")
    assert one.claim(resume=False).id != first.id


def test_a_copied_sweep_gets_an_id_of_its_own_and_a_moved_one_keeps_its(world: SmallWorld, tmp_path: Path) -> None:
    def named(name: str) -> Sweep:
        return sweep(
            world.settings(f"--run.storage={tmp_path}", f"--run.name={name}"), "grounding.dropout=choice:0,0.1"
        )

    first = named("s").claim(resume=False)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    copied = named("copy").claim(resume=True)
    assert copied.id != first.id
    assert named("copy").claim(resume=True) == copied
    assert named("s").claim(resume=True) == first
    (tmp_path / "s").rename(tmp_path / "moved")
    assert named("moved").claim(resume=True).id == first.id
    shutil.copytree(tmp_path / "moved", tmp_path / "again")
    assert named("again").claim(resume=True).id != first.id


def test_a_sweep_of_an_earlier_version_is_adopted(world: SmallWorld, tmp_path: Path) -> None:
    """Its definition has neither an id nor a seal."""
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s"), "grounding.temperature=choice:0.1,1")
    one.folder.make().write_json("sweep.json", one.definition())
    with pytest.raises(SettingsError, match=r"seeds: 1 .*2 now"):
        replace(one, seeds=2).claim(resume=True)
    adopted = one.claim(resume=True)
    assert adopted.adopted
    assert one.claim(resume=True) == adopted
    text = one.folder.read_bytes("sweep.json")
    for damaged in (text[:100], text.replace(b"0.1", b"0.2", 1), b"", text.replace(b"sha256", b"sha.56")):
        one.folder.write_bytes("sweep.json", damaged)
        with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
            one.claim(resume=True)


def test_the_state_of_tune_is_read_where_only_its_owner_writes(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s")
    one = sweep(words, "grounding.temperature=choice:0.1,1")
    one.ensure_state_is_trusted(resume=True, trust_storage=False)  # it has not started
    state = tmp_path / "s" / "tune"
    (state / "inner").mkdir(parents=True)
    (state / "inner" / "tuner.pkl").touch()
    one.ensure_state_is_trusted(resume=True, trust_storage=False)

    (state / "inner" / "tuner.pkl").chmod(0o666)
    with pytest.raises(SettingsError, match=rf"tuner\.pkl .*--trust-storage .*delete {state}"):
        one.ensure_state_is_trusted(resume=True, trust_storage=False)
    one.ensure_state_is_trusted(resume=True, trust_storage=True)
    one.ensure_state_is_trusted(resume=False, trust_storage=False)  # nothing is read

    (state / "inner" / "tuner.pkl").chmod(0o600)
    monkeypatch.setattr(spec.os, "geteuid", lambda: 4711)
    with pytest.raises(SettingsError, match=rf"{state} belongs to another user"):
        one.ensure_state_is_trusted(resume=True, trust_storage=False)
    with pytest.raises(SettingsError, match=r"another --run\.name, since TPE"):
        replace(one, search="tpe").ensure_state_is_trusted(resume=True, trust_storage=False)


def test_the_state_of_tune_in_a_store_is_read_only_if_asked(
    world: SmallWorld, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    one = sweep(world.settings(f"--run.storage={s3.folder()}", "--run.name=s"), "grounding.temperature=choice:0.1,1")
    one.ensure_state_is_trusted(resume=True, trust_storage=False)
    (one.folder / "tune").write_bytes("tuner.pkl", b"")
    with pytest.raises(SettingsError, match=r"in an object store: give --trust-storage"):
        one.ensure_state_is_trusted(resume=True, trust_storage=False)
    one.ensure_state_is_trusted(resume=True, trust_storage=True)
