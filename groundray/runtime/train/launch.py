"""Runs a training run with Ray Train: each worker runs the same stages, and the driver receives their events."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import joblib
import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from groundray import arithmetic
from groundray.config import Settings
from groundray.distributed import GPU_BACKENDS, gather_strings
from groundray.runtime import cluster
from groundray.runtime.data.feature_tasks import make_features
from groundray.runtime.nodes import accepting_nodes
from groundray.runtime.train import reports
from groundray.runtime.train.failure_policy import describe
from groundray.runtime.train.gauges import Gauges
from groundray.runtime.train.group import GROUP, NodeTorchConfig, passed_on
from groundray.runtime.train.mailbox import FLUSH_SECONDS, Mailbox
from groundray.runtime.train.ray_worker import RayWorker
from groundray.runtime.train.resources import DataCpuBudget, cluster_resources, min_bundles, wait_until
from groundray.runtime.train.trainer import Trainer
from groundray.storage.folder import Folder
from groundray.training import allocator, in_process, layout, preflight, progression
from groundray.training.accumulation import accumulating, offer_accumulation
from groundray.training.endings import Stopped
from groundray.training.events import Event, Notice
from groundray.training.preflight import CheckedRun
from groundray.training.stragglers import RankTimes, Stragglers
from groundray.training.watchdog import Peers, Watchdog, grace

RAY_FOLDER = "ray"
RESIZE_CHECK_SECONDS = 10.0  # interval of the check whether another number of workers fits
START_SECONDS = 20  # Ray's timeout of one attempt to place a worker group; scaling.wait_minutes limits all attempts


class RunFailed(RuntimeError):
    """A run ended with an error of a worker; the message describes it."""


def fit(
    run: CheckedRun,
    observe: Callable[[Event], None],
    verbose: bool = False,
    get_stop_reason: Callable[[], str] = lambda: "",
    cpu_fraction: float = 1.0,
) -> dict[str, Any]:
    """Train, and return the result. Uses Ray Train workers, or this process if `scaling.num_workers` is 0.

    Args:
        get_stop_reason: returns the reason to write a checkpoint and stop, or an empty string.
        cpu_fraction: fraction of the cluster's CPUs that the run may use, above 0 to 1.

    Raises:
        Stopped: the run was asked to stop; the same command resumes it.
        RunFailed: a worker failed; the same command resumes from the last checkpoint.
        ValueError: the cluster has too few resources, and has not grown within `scaling.wait_minutes`.
    """
    settings = run.settings
    if settings.scaling.max_workers == 0:
        return in_process.fit(run, observe, get_stop_reason)
    with cluster.connect(verbose=verbose):
        wait_until(
            lambda: cluster_resources(settings, cpu_fraction).check(),
            min_bundles(settings),
            settings.scaling.wait_minutes,
            lambda text: observe(Notice(text)),
        )
        try:
            make_features(run, observe)
        except RayError as error:
            raise RunFailed(f"trunk features: {getattr(error, 'cause', error)}") from error
        return _fit_on_ray(run, observe, get_stop_reason, cpu_fraction)


def check_cluster(settings: Settings) -> None:
    """Check that the cluster answers that the run would use, so that one that does not fails before anything starts.

    Raises:
        NoCluster: it does not; the message gives the repair.
    """
    if settings.scaling.max_workers:
        cluster.check_address()


def _fit_on_ray(
    run: CheckedRun, observe: Callable[[Event], None], get_stop_reason: Callable[[], str], cpu_fraction: float
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
            **_to_workers(run),
            "mailbox": mailbox,
            "cpu_fraction": cpu_fraction,
        },
        torch_config=NodeTorchConfig(
            backend=GPU_BACKENDS if scaling.use_gpu else "gloo",
            timeout_s=int(hang + 3 * grace(hang)),
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            accelerator_type=scaling.accelerator_type,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if scaling.use_gpu else {})},
            elastic_resize_monitor_interval_s=RESIZE_CHECK_SECONDS,
        ),
        run_config=ray.train.RunConfig(
            name=settings.run.name,  # also of a folder, in which Ray (2.60) keeps nothing without checkpoints
            **storage_arguments(run.folder / RAY_FOLDER),
            worker_runtime_env={"env_vars": _environment(settings)},
        ),
        settings=settings,
        mailbox=mailbox,
    )
    with _exchange_events(mailbox, observe, get_stop_reason):
        try:
            _run_in_thread(trainer.fit)
        except TrainingFailedError as error:
            failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
            waiting = [error.controller_failure] if isinstance(error, ControllerError) else []
            if stopped := next((error for error in (*failures, *waiting) if isinstance(error, Stopped)), None):
                raise stopped from None
            raise RunFailed(describe(error)) from error
        except RayError as error:
            raise RunFailed(describe(error)) from error
    result = layout.read_result(run.folder)
    if result is None:
        raise RunFailed(f"the workers have ended, but {run.folder} has no {layout.RESULT}: rerun the same command")
    return result


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of a worker, which its libraries read when they start."""
    gpu = settings.scaling.use_gpu
    deterministic = arithmetic.CUBLAS_WORKSPACE if gpu and settings.scaling.deterministic else {}
    return allocator.environment(gpu) | deterministic | passed_on(os.environ)


def _run_in_thread(work: Callable[[], Any]) -> None:
    """Run a function in a thread, and raise what it raises. Signals are handled in this thread meanwhile: on the main
    thread Ray would install its own handler of Ctrl-C, which leaves workers no time for a checkpoint."""
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
    """Return a folder as arguments of Ray's `RunConfig`."""
    return {"storage_path": folder.path} | ({} if folder.local else {"storage_filesystem": folder.filesystem})


def _to_workers(run: CheckedRun) -> dict[str, Any]:
    """Return what a worker needs to open the run, in whichever folder it starts."""
    return {"settings": run.settings.absolute().model_dump(mode="json"), "settings_hash": run.settings_hash}


def _opened_by_worker(config: dict[str, Any]) -> CheckedRun:
    """Return the run that `_to_workers` describes."""
    return replace(preflight.check(Settings(**config["settings"])), claimed_hash=config["settings_hash"])


def _train_worker(config: dict[str, Any]) -> None:
    settings, mailbox = Settings(**config["settings"]), config["mailbox"]
    if settings.scaling.use_gpu and settings.scaling.deterministic:
        arithmetic.set_environment()  # before the first collective
    context = ray.train.get_context()
    cores = joblib.cpu_count()
    torch.set_num_threads(settings.scaling.threads or max(1, cores // context.get_local_world_size()))
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if settings.chunks > world_size and ray.get(mailbox.accumulates.remote()):
        settings = accumulating(settings)

    def tell(text: str) -> None:
        ray.get(mailbox.put.remote([Notice(text)]))

    stragglers = Stragglers(f"{socket.gethostname()} ({ray.util.get_node_ip_address()})", world_size, tell)
    watchdog = Watchdog(
        settings.scaling.hang_minutes * 60,
        layout.folder_of(settings),
        rank,
        tell,
        peers=_peers(mailbox, rank, world_size, stragglers),
    )
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", watchdog.flight_prefix)  # where torch dumps at its own timeout
    try:
        here = ray.get_runtime_context().get_node_id()
        cpu_budget = DataCpuBudget.of(
            gather_strings(here), settings.scaling.cpus_per_worker, accepting_nodes(), config["cpu_fraction"]
        )
        worker = RayWorker(
            rank=rank,
            world_size=world_size,
            device=str(ray.train.torch.get_device()),
            mailbox=mailbox,
            cpu_budget=cpu_budget,
            prefetch=settings.data.prefetch,
            watchdog=watchdog,
            stragglers=stragglers,
            gauges=Gauges(settings.run.name, rank),
            report=reports.report,
        )
        try:
            with offer_accumulation(settings, rank, world_size):
                progression.run_stages(replace(_opened_by_worker(config), settings=settings), worker)
        finally:
            worker.flush()
    finally:
        watchdog.close()


def _peers(mailbox: Any, rank: int, world_size: int, stragglers: Stragglers) -> Peers | None:
    """Return what a worker knows of the other ranks, which it and they tell the driver's mailbox. Rank 0 compares the
    times of their steps."""
    if world_size == 1:
        return None
    group = os.environ[GROUP]

    def exchange(begun: int) -> dict[int, int]:
        told: dict[int, tuple[int, RankTimes]] = ray.get(mailbox.exchange.remote(group, rank, (begun, stragglers.own)))
        if rank == 0:
            stragglers.compare({one: times for one, (_, times) in told.items()})
        return {one: collectives for one, (collectives, _) in told.items()}

    return Peers(world_size, group, exchange)


@contextlib.contextmanager
def _exchange_events(
    mailbox: Any, observe: Callable[[Event], None], get_stop_reason: Callable[[], str]
) -> Iterator[None]:
    """Pass events from the mailbox to `observe`, and stop requests to rank 0, in a thread inside the context. At its
    end all events have been passed."""
    ended = threading.Event()

    def exchange() -> None:
        sent = ""
        while not ended.wait(FLUSH_SECONDS / 2):
            if (reason := get_stop_reason()) and reason != sent:
                sent = reason
                with contextlib.suppress(RayError):
                    mailbox.request_stop.remote(reason)
            take()

    def take() -> None:
        try:
            events = ray.get(mailbox.take.remote())
        except RayError:  # the mailbox died with its node, and so did the run, which reports the cause
            return
        for event in events:
            try:
                observe(event)
            except Exception:  # a closed terminal must neither end the run nor block stop requests
                logging.getLogger(__name__).exception("cannot pass on an event: %s", event)

    thread = threading.Thread(target=exchange, name="groundray-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(RayError):
            take()
