"""TensorBoard and W&B beside MLflow: each step once whatever was killed or failed, and nothing in a wrong place."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import made_history
import numpy as np
import psutil
import pytest
import servers
from conftest import SmallWorld
from made_history import STAGE

from groundray import sweep, train
from groundray.config import Settings, flatten
from groundray.runtime.train import launch
from groundray.storage.folder import Folder
from groundray.tracking import tracker as tracking
from groundray.tracking.inquiry import Inquiry
from groundray.tracking.protocol import Status
from groundray.tracking.sweep_log import SweepLog
from groundray.tracking.tracker import Tracker
from groundray.training import identity
from groundray.training.events import Attempted, EpochDone, Event, Recovered, StageDone, StepDone
from groundray.training.identity import Identity

pytestmark = pytest.mark.thorough  # processes of TensorBoard and Weights & Biases

EPOCH_STEPS, STEPS = 5, 10
PATIENCE_SECONDS = 60.0
Curves = dict[str, list[tuple[int, float]]]
RESULT = {"stages": {STAGE: {"loss": 0.25}}, "best": {}}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.1)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "runs" / "tracked").make()


def settings(*to: str, **more: Any) -> Settings:
    own = {"to": to, "experiment": "tests", "wandb": {"mode": "offline"}}
    return Settings(
        run={"name": "tracked"},
        stages=(STAGE,),
        grounding={"train": "t", "val": "v", "batch_size": 4, "epochs": STEPS // EPOCH_STEPS},
        tracking={**own, **more},
    )  # type: ignore[arg-type]


def claimed(folder: Folder) -> Identity:
    return identity.claim(folder, settings("mlflow"), {"grounding.train": "abc"})


@dataclass(frozen=True)
class Reader:
    """How a test reads what a tracker holds of the run in a folder.

    Attributes:
        name: in `tracking.to`.
        title: in warnings.
        read: returns the points of each curve, in the order in which they were logged.
    """

    name: str
    title: str
    read: Callable[[Folder], Curves]


def of_tensorboard(folder: Folder) -> Curves:
    accumulator = events_of(Path(folder.path))
    return {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def events_of(folder: Path) -> Any:
    """Return what TensorBoard itself reads of the run in a folder."""
    kind = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    return kind(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def records_of(folder: Path) -> list[Any]:
    """Return the records of the only offline run of W&B in a run's folder."""
    store = import_module("wandb.sdk.internal.datastore").DataStore()
    messages = import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    store.open_for_scan(str(path))
    records = []
    try:
        while data := store.scan_data():
            records.append(messages.Record())
            records[-1].ParseFromString(data)
    finally:
        store.close()
    return records


def of_wandb(folder: Folder) -> Curves:
    curves: Curves = {}
    for record in records_of(Path(folder.path)):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        step = next((row[name] for name in ("grounding/step", "recovery/attempt") if name in row), 0)
        for name, value in row.items():
            if not name.startswith("_") and name not in ("grounding/step", "recovery/attempt"):
                curves.setdefault(name, []).append((step, value))
    return curves


READERS = [Reader("tensorboard", "TensorBoard", of_tensorboard), Reader("wandb", "W&B", of_wandb)]
EVERY_TRACKER = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


def events(first: int, last: int) -> list[StepDone | EpochDone]:
    return made_history.steps(first, last, STEPS, EPOCH_STEPS)


def expected(last: int = STEPS) -> Curves:
    """Return the curves of the steps up to the last one, each once and in order."""
    steps = [(step, float(np.float32(1 / step))) for step in range(1, last + 1)]
    ends = [(step, value) for step, value in steps if step % EPOCH_STEPS == 0]
    return {
        "grounding/loss": steps,
        "grounding/seconds": [(step, 0.5) for step, _ in steps],
        "grounding/val/loss": ends,
        "grounding/val/recall_at_10": [(step, 0.5) for step, _ in ends],
    }


def in_float32(curves: Curves) -> Curves:
    return {name: [(step, float(np.float32(value))) for step, value in points] for name, points in curves.items()}


def wait_until(so: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not so():
        assert time.monotonic() < until
        time.sleep(0.05)


def has_begun(reader: Reader, folder: Folder) -> bool:
    """Return True if a tracker has a file of the run. What wandb has written to it may be in memory so far."""
    files = {"tensorboard": "tensorboard/*tfevents*", "wandb": "wandb/offline-run-*/*.wandb"}[reader.name]
    return any(Path(folder.path).glob(files))


def services() -> list[psutil.Process]:
    """Return wandb's processes below this one."""
    return [each for each in psutil.Process().children(recursive=True) if "wandb" in each.name()]


@EVERY_TRACKER
def test_each_step_is_logged_once_after_a_sigkill(reader: Reader, folder: Folder) -> None:
    """The driver was killed two steps after its checkpoint; the next one repeats them."""
    import_module(reader.name)  # the child has no time for it
    run, own = claimed(folder), settings(reader.name)
    child = os.fork()
    if not child:
        tracker = Tracker(own, folder, run, lambda _: None)
        for event in events(1, 8):
            tracker.observe(event)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)
    try:
        wait_until(lambda: has_begun(reader, folder))
        time.sleep(0.5)  # it logs all steps now
    finally:
        started = psutil.Process(child).children(recursive=True)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    attempt = made_history.begin(folder, 0, EPOCH_STEPS)
    for first, last in ((1, 5), (6, 6)):
        made_history.write(attempt, events(first, last), EPOCH_STEPS)
    made_history.begin(folder, 6, EPOCH_STEPS)

    tracker = Tracker(own, folder, run, pytest.fail)
    told: list[Event] = [Attempted(2, STAGE, 6, "killed", 2, 2.5, 0), Recovered(2, 3.5, 20.0)]
    for event in (*told, *events(7, 10), StageDone(STAGE, 10, {"loss": 0.25})):
        tracker.observe(event)
    tracker.close(RESULT)
    curves = in_float32(reader.read(folder))
    assert {name: points for name, points in curves.items() if name in expected()} == expected()
    assert curves["grounding/best/loss"] == [(10, 0.25)]
    assert curves["recovery/down_seconds"] == [(2, 20.0)]
    assert [step for step, _ in curves["recovery/attempts"]] == [1, 2]
    psutil.wait_procs(started, 10)
    assert not any(each.is_running() for each in started)
    assert services() == []


@EVERY_TRACKER
def test_what_a_tracker_missed_is_logged_at_its_place(reader: Reader, folder: Folder) -> None:
    """It failed while the first steps were done, of which no checkpoint was written yet; the end finds them."""
    attempt = made_history.begin(folder, 0, EPOCH_STEPS)
    blocked = Path(folder.path) / reader.name
    blocked.write_text("not a folder")
    warnings: list[str] = []
    tracker = Tracker(settings(reader.name), folder, claimed(folder), warnings.append)
    for event in events(1, 3):
        tracker.observe(event)
    wait_until(lambda: warnings)
    blocked.unlink()
    for event in events(4, 7):
        tracker.observe(event)
    wait_until(lambda: has_begun(reader, folder))
    for first, last in ((1, 5), (6, 10)):
        made_history.write(attempt, events(first, last), EPOCH_STEPS)
    tracker.close(RESULT)
    curves = in_float32(reader.read(folder))
    assert {name: sorted(points) for name, points in curves.items() if name in expected()} == expected()
    if reader.name == "tensorboard":  # whose readers take another order for a restart
        assert curves["grounding/loss"] == expected()["grounding/loss"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"tracking failed, training continues: {reader.title}: ")


def test_wandb_goes_on_when_its_process_dies(folder: Folder) -> None:
    attempt = made_history.begin(folder, 0, EPOCH_STEPS)
    warnings: list[str] = []
    tracker = Tracker(settings("wandb"), folder, claimed(folder), warnings.append)
    for event in events(1, 3):
        tracker.observe(event)
    wait_until(lambda: has_begun(READERS[1], folder))
    (service,) = services()
    (started,) = (each for each in gc.get_objects() if type(each) is subprocess.Popen and each.pid == service.pid)
    started.kill()
    started.wait()  # by the object that wandb keeps, which else warns when it is collected, in a later test
    for event in events(4, 5):
        tracker.observe(event)
    wait_until(lambda: warnings)
    for first, last in ((1, 5), (6, 10)):
        made_history.write(attempt, events(first, last), EPOCH_STEPS)
    tracker.close(RESULT)
    curves = in_float32(of_wandb(folder))
    assert {name: sorted(points) for name, points in curves.items() if name in expected()} == expected()
    assert len(warnings) == 1
    assert services() == []


def test_trackers_that_fail_do_not_disturb_another(folder: Folder) -> None:
    (Path(folder.path) / "tensorboard").write_text("not a folder")
    warnings: list[str] = []
    own = settings("mlflow", "tensorboard", "wandb", uri="http://127.0.0.1:9")
    tracker = Tracker(own, folder, claimed(folder), warnings.append)
    for event in events(1, 10):
        tracker.observe(event)
    tracker.close(None, "KILLED")
    assert in_float32(of_wandb(folder)) == expected()
    warnings = [warning for warning in warnings if "still logging" not in warning]  # where the machine is busy
    assert len(warnings) == 4
    for title in ("MLflow", "TensorBoard"):
        first, last = (warning for warning in warnings if f" {title}: " in warning)
        assert first.startswith(f"tracking failed, training continues: {title}: ")
        assert last.startswith(f"tracking in {title}: ")


def test_tensorboard_has_configuration_result_and_status(folder: Folder) -> None:
    own = settings("tensorboard")
    for _ in range(2):  # a finished run that is started again
        Tracker(own, folder, claimed(folder), pytest.fail).close(RESULT)
    assert len(list(Path(folder.path).glob("tensorboard/*"))) == 1
    accumulator = events_of(Path(folder.path))
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in accumulator.Tensors(tag)]
        for tag in ("config", "result", "status")
    }
    assert texts["status"] == ["FINISHED"]
    assert "| stages.grounding.loss | 0.25 |" in texts["result"][0]
    assert "| data.grounding.train.fingerprint | abc |" in texts["config"][0]
    assert "| git.commit | " in texts["config"][0]
    metadata = import_module("tensorboard.plugins.hparams.metadata")
    content = {
        tag: accumulator.SummaryMetadata(f"_hparams_/session_{tag}_info").plugin_data.content
        for tag in ("start", "end")
    }
    values = metadata.parse_session_start_info_plugin_data(content["start"]).hparams
    assert values["grounding.temperature"].number_value == 0.1
    assert values["tracking.enabled"].bool_value is True
    assert values["stages"].string_value == '["grounding"]'
    assert metadata.parse_session_end_info_plugin_data(content["end"]).status == 1  # success


def test_wandb_has_configuration_result_and_group(folder: Folder) -> None:
    own, run = settings("wandb"), claimed(folder)
    tracker = Tracker(own, folder, run, pytest.fail, parent="sweep-7")
    tracker.observe(events(1, 1)[0])
    tracker.close(RESULT, "FINISHED")
    records = records_of(Path(folder.path))
    (begun,) = [record.run for record in records if record.HasField("run")]
    assert (begun.run_id, begun.project, begun.run_group, begun.display_name) == (run.id, "tests", "sweep-7", "tracked")
    config = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in begun.config.update}
    assert config["grounding.temperature"] == 0.1
    assert config["data.grounding.train.fingerprint"] == "abc"
    assert config["git.commit"]
    assert {name for name, _ in flatten(own.model_dump())} <= set(config)
    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in records
        for item in record.summary.update
    }
    assert summary["result.stages.grounding.loss"] == 0.25
    assert summary["status"] == "FINISHED"
    assert json.loads(summary["groundray_logged"])["grounding"] == [[1, 2, 1]]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.metric.glob_name}
    assert axes == {"grounding/*": "grounding/step", "recovery/*": "recovery/attempt"}


def test_nothing_is_written_or_printed_elsewhere(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush-7")
    run = claimed(folder)
    tracker = Tracker(settings("tensorboard", "wandb"), folder, run, pytest.fail)
    for event in events(1, 10):
        tracker.observe(event)
    wait_until(lambda: has_begun(READERS[1], folder))
    time.sleep(0.5)
    before = time.monotonic()
    tracker.close(RESULT)
    seconds = time.monotonic() - before
    assert capfd.readouterr() == ("", "")
    assert [*(tmp_path / "home").rglob("*"), *(tmp_path / "here").rglob("*")] == []
    assert services() == []
    assert not any(b"hush-hush-7" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert {path.name for path in Path(folder.path).iterdir()} >= {"tensorboard", "wandb"}
    assert not [path for path in Path(folder.path).rglob("*") if path.is_symlink()]  # the folder can be copied
    print(f"the end took {seconds:.2f} s")
    assert seconds < 10  # 0.3 s where the machine is idle


def test_a_key_in_an_error_is_hidden(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush-7")
    (Path(folder.path) / "tensorboard").mkdir()
    warnings: list[str] = []
    bad = settings("tensorboard", tensorboard={"folder": "/dev/null/hush-hush-7"})
    Tracker(bad, folder, claimed(folder), warnings.append).close(None)
    assert warnings
    assert not any("hush-hush-7" in warning for warning in warnings)


def test_runs_share_a_folder_of_tensorboard(tmp_path: Path) -> None:
    own = settings("tensorboard", tensorboard={"folder": str(tmp_path / "logs")})
    ids = []
    for storage, parent in (("a", None), ("b", None), ("c", "0123456789abcdef")):
        folder = Folder.at(tmp_path / storage / "tracked").make()
        ids.append(claimed(folder).id[:8])
        Tracker(own, folder, claimed(folder), pytest.fail, parent).close(None)
    found = {str(path.parent.relative_to(tmp_path / "logs")) for path in tmp_path.glob("logs/**/*tfevents*")}
    assert found == {f"tracked-{ids[0]}", f"tracked-{ids[1]}", f"01234567/tracked-{ids[2]}"}


def test_in_a_copy_of_a_run_the_copy_s_own_steps_are_read(folder: Folder, tmp_path: Path) -> None:
    attempt = made_history.begin(folder, 0, EPOCH_STEPS)
    made_history.write(attempt, events(1, 5), EPOCH_STEPS)
    Tracker(settings("tensorboard"), folder, claimed(folder), pytest.fail).close(None, "KILLED")
    copied = Folder.at(shutil.copytree(folder.path, tmp_path / "runs" / "copied"))
    (first,) = Path(copied.path).glob("tensorboard/*")
    first.rename(first.with_suffix(f".{'f' * 32}"))  # an id that may come last
    tracker = Tracker(settings("tensorboard"), copied, claimed(copied), pytest.fail)
    for event in events(6, STEPS):
        tracker.observe(event)
    tracker.close(RESULT)
    assert of_tensorboard(copied)["grounding/loss"] == expected()["grounding/loss"]


def test_files_go_to_a_store(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.s3() as store:
        store.use(monkeypatch)
        far = Folder.at(store.folder()).make()
        for _ in range(2):
            tracker = Tracker(settings("tensorboard", "wandb"), far, claimed(far), pytest.fail)
            for event in events(1, 10):
                tracker.observe(event)
            tracker.close(RESULT)
        far.download(Path(folder.path))
    assert of_tensorboard(folder) == expected()
    assert in_float32(of_wandb(folder)) == expected()


@EVERY_TRACKER
def test_the_end_of_a_sweep_corrects_its_trials(reader: Reader, folder: Folder) -> None:
    """A trial that is stopped early ends as failed, and a trial's tracker may have failed without a word."""
    swept = Folder.at(folder.path).parent
    stopped, failed = (swept / name for name in ("tracked", "other"))
    own = settings(reader.name)
    for trial in (stopped, failed.make()):
        identity.claim(trial, settings("mlflow"), {"grounding.train": "abc"})
        attempt = made_history.begin(trial, 0, EPOCH_STEPS)
        made_history.write(attempt, events(1, 5), EPOCH_STEPS)
    Tracker(own, stopped, claimed(stopped), pytest.fail, "sweep-7").close(None, "FAILED")
    log = SweepLog(own, swept, Identity("sweep-7", own, {}, str(swept)), {}, pytest.fail)
    runs: dict[str, Status] = {"tracked": "KILLED", "other": "FAILED", "missing": "KILLED"}
    log.close({}, [], runs, finished=True)
    written = {path: path.stat().st_mtime_ns for path in Path(swept.path).rglob("*") if path.is_file()}
    log.close({}, [], runs, finished=True)  # all is there
    assert written == {path: path.stat().st_mtime_ns for path in Path(swept.path).rglob("*") if path.is_file()}
    for trial, status in ((stopped, "KILLED"), (failed, "FAILED")):
        assert in_float32(reader.read(trial))["grounding/loss"] == expected(5)["grounding/loss"]
        if reader.name == "tensorboard":
            (event,) = events_of(Path(trial.path)).Tensors("status")
            assert event.tensor_proto.string_val[0].decode() == status
        else:
            (begun,) = [record.run for record in records_of(Path(trial.path)) if record.HasField("run")]
            assert begun.run_group == "sweep-7"


def test_a_missing_extra_ends_a_start(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "fit", lambda *_, **__: pytest.fail("it trains"))
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        problem = Inquiry(settings(name)).problem()
        assert problem is not None
        assert f"{name} needs a package that is not installed: run `pip install groundray[trackers]`" in problem
        assert Inquiry(settings("mlflow")).problem() is None
    tracked = ["--tracking.enabled=true", "--tracking.to=mlflow,tensorboard"]
    words = world.settings(*tracked, f"--run.storage={tmp_path}/runs", "--scaling.num_workers=0")
    repair = "tracking.to: tensorboard needs a package that is not installed: run `pip install groundray[trackers]`"
    assert train.main(words) == 2
    assert repair in capsys.readouterr().err
    swept = ["--space=grounding.temperature=choice:0.05,0.1", "--metric=grounding/loss"]
    assert sweep.main([*swept, *words]) == 2
    assert repair in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_wandb_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = settings("wandb", wandb={"mode": "online"})
    problem = Inquiry(online).problem()
    assert problem is not None
    assert "WANDB_API_KEY" in problem
    assert "--tracking.wandb.mode offline" in problem
    assert Inquiry(settings("wandb")).problem() is None
    assert Inquiry(settings("mlflow", wandb={"mode": "online"})).problem() is None
    (tmp_path / "home" / ".netrc").write_text("machine example.com login user password hush-hush-7\n")
    assert Inquiry(online).problem() == problem
    (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai login user password hush-hush-7\n")
    assert Inquiry(online).problem() is None
    (tmp_path / "home" / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush-7")
    assert Inquiry(online).problem() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": ()}, "at least 1"),
        ({"to": ("mlflow", "mlflow")}, "each name once"),
        ({"to": ("comet",)}, "'mlflow', 'tensorboard' or 'wandb'"),
    ],
)
def test_trackers_that_do_not_exist_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(stages=(STAGE,), tracking=given)  # type: ignore[arg-type]


def test_tracking_is_no_part_of_a_runs_identity() -> None:
    assert settings("mlflow").identity() == settings("wandb", "tensorboard", tensorboard={"folder": "x"}).identity()
