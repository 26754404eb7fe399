"""A training run on Ray Train: the same `training.run.train` on each worker, and its events brought to the driver."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from groundray.config import Settings
from groundray.distributed import gather_strings
from groundray.runtime import cluster
from groundray.runtime.data.feature_tasks import make_features
from groundray.runtime.train.failure_policy import describe
from groundray.runtime.train.group import NodeTorchConfig
from groundray.runtime.train.ray_worker import FLUSH_SECONDS, Mailbox, RayWorker
from groundray.runtime.train.resources import DataCpuBudget, cluster_resources, min_bundles, node_cpus, wait_until
from groundray.runtime.train.trainer import Trainer
from groundray.storage.folder import Folder
from groundray.training import allocator, layout, preflight, progression
from groundray.training.events import Event, Notice
from groundray.training.preflight import CheckedRun
from groundray.training.watchdog import Watchdog, grace
from groundray.training.worker import InProcess, Stopped

RAY_FOLDER = "ray"
LOOK_SECONDS = 10.0  # from one look at whether there is room for another number of workers to the next
START_SECONDS = 20  # for which Ray holds a place for a worker group at a time; scaling.wait_minutes is longer


class RunFailed(RuntimeError):
    """A run that ended with an error on a worker; the message is the worker's."""


def fit(
    run: CheckedRun,
    observe: Callable[[Event], None],
    verbose: bool = False,
    notice: Callable[[], str] = lambda: "",
    share: float = 1.0,
) -> dict[str, Any]:
    """The result of a run, on Ray Train workers or, with `scaling.num_workers` 0, in this process.

    Args:
        notice: why the run should write a checkpoint and end now; empty as long as it should not.
        share: of the cluster's CPUs, which the run may take for itself.

    Raises:
        Stopped: it had notice; the same command goes on.
        RunFailed: a worker raised; what the run had committed is kept, and the same command goes on from there.
        ValueError: the cluster cannot hold the run, nor has it grown meanwhile where it might.
    """
    settings = run.settings
    if settings.scaling.max_workers == 0:
        return _fit_in_process(run, observe, notice)
    with cluster.connect(verbose=verbose):
        wait_until(
            lambda: cluster_resources(settings, share).check(),
            min_bundles(settings),
            settings.scaling.wait_minutes,
            lambda text: observe(Notice(text)),
        )
        try:
            make_features(run, observe)
        except RayError as error:
            raise RunFailed(f"trunk features: {getattr(error, 'cause', error)}") from error
        return _fit_on_ray(run, observe, notice, share)


def _fit_in_process(run: CheckedRun, observe: Callable[[Event], None], notice: Callable[[], str]) -> dict[str, Any]:
    settings = run.settings
    device = "cuda" if settings.scaling.use_gpu else "cpu"
    torch.set_num_threads(settings.scaling.threads or joblib.cpu_count())
    watchdog = _watchdog(run.folder, settings, 0, lambda text: observe(Notice(text)))
    try:
        return progression.run_stages(
            run, InProcess(observe, device, get_stop_reason=notice, on_heartbeat=watchdog.heartbeat)
        )
    finally:
        watchdog.close()


def _fit_on_ray(
    run: CheckedRun, observe: Callable[[Event], None], notice: Callable[[], str], share: float
) -> dict[str, Any]:
    settings = run.settings
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=here).remote()
    scaling = settings.scaling
    hang = scaling.hang_minutes * 60
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    trainer = Trainer(
        _train_worker,
        train_loop_config={
            "settings": settings.absolute().model_dump(mode="json"),
            "mailbox": mailbox,
            "share": share,
        },
        torch_config=NodeTorchConfig(timeout_s=int(hang + 3 * grace(hang))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if scaling.use_gpu else {})},
            elastic_resize_monitor_interval_s=LOOK_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=RAY_FOLDER,
            **storage_arguments(run.folder),
            worker_runtime_env={"env_vars": allocator.ENVIRONMENT},
        ),
        settings=settings,
        mailbox=mailbox,
    )
    with _exchange_events(mailbox, observe, notice):
        try:
            _run_in_thread(trainer.fit)
        except TrainingFailedError as error:
            failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
            waiting = [error.controller_failure] if isinstance(error, ControllerError) else []
            if stopped := next((one for one in (*failures, *waiting) if isinstance(one, Stopped)), None):
                raise stopped from None
            raise RunFailed(describe(error)) from error
        except RayError as error:
            raise RunFailed(describe(error)) from error
    return run.folder.read_json(layout.RESULT)


def _run_in_thread(work: Callable[[], Any]) -> None:
    """Do it in a thread, while this one is free for signals: Ray's own handler for Ctrl-C, which gives workers no time
    for a checkpoint, is only put in place on the main thread."""
    raised: list[BaseException] = []

    def working() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised again below
            raised.append(error)

    thread = threading.Thread(target=working, name="groundray-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(FLUSH_SECONDS / 2)
    if raised:
        raise raised[0]


def storage_arguments(folder: Folder) -> dict[str, Any]:
    """A folder as Ray's configurations of runs take it."""
    return {"storage_path": folder.path} | ({} if folder.local else {"storage_filesystem": folder.filesystem})


def _train_worker(config: dict[str, Any]) -> None:
    settings, mailbox = Settings(**config["settings"]), config["mailbox"]
    context = ray.train.get_context()
    cores = joblib.cpu_count()
    torch.set_num_threads(settings.scaling.threads or max(1, cores // context.get_local_world_size()))
    rank, world_size = context.get_world_rank(), context.get_world_size()
    here = ray.get_runtime_context().get_node_id()
    cpu_budget = DataCpuBudget.of(gather_strings(here), settings.scaling.cpus_per_worker, node_cpus(), config["share"])
    watchdog = _watchdog(
        layout.folder_of(settings), settings, rank, lambda text: ray.get(mailbox.put.remote([Notice(text)]))
    )
    worker = RayWorker(
        rank=rank,
        world_size=world_size,
        device=str(ray.train.torch.get_device()),
        mailbox=mailbox,
        cpu_budget=cpu_budget,
        prefetch=settings.data.prefetch,
        watchdog=watchdog,
    )
    try:
        progression.run_stages(preflight.check(settings), worker)
    finally:
        watchdog.close()
        worker.flush()


def _watchdog(run: Folder, settings: Settings, rank: int, tell: Callable[[str], None]) -> Watchdog:
    return Watchdog(settings.scaling.hang_minutes * 60, run, rank, tell)


@contextlib.contextmanager
def _exchange_events(mailbox: Any, observe: Callable[[Event], None], notice: Callable[[], str]) -> Iterator[None]:
    """Meanwhile, a thread brings the mailbox's events to `observe`, and a notice to rank 0; at the end all events have
    arrived."""
    over = threading.Event()

    def exchange() -> None:
        told = ""
        while not over.wait(FLUSH_SECONDS / 2):
            if (wanted := notice()) and wanted != told:
                told = wanted
                with contextlib.suppress(RayError):
                    mailbox.request_stop.remote(wanted)
            take()

    def take() -> None:
        try:
            events = ray.get(mailbox.take.remote())
        except RayError:  # what ends the mailbox ends the run, which says why
            return
        for event in events:
            try:
                observe(event)
            except Exception:  # a screen that is gone must not end a run, nor keep notice from it
                logging.getLogger(__name__).exception("an event could not be told: %s", event)

    thread = threading.Thread(target=exchange, name="groundray-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(RayError):
            take()
