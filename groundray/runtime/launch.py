"""A training run on Ray Train: the same `training.run.train` on each worker, and its events brought to the driver."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import TrainingFailedError

from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step
from groundray.runtime import cluster
from groundray.runtime.features import make_features
from groundray.runtime.stream import stream
from groundray.training import memory, run
from groundray.training.events import Event, StepDone
from groundray.training.worker import InProcess

FLUSH_SECONDS = 1.0
RAY_FOLDER = "ray"
MIN_DATA_CPUS = 0.2


class RunFailed(RuntimeError):
    """A run that ended with an error on a worker; the message is the worker's."""


@dataclass(frozen=True)
class Resources:
    """What a run wants of the cluster, against what the cluster has."""

    workers: int
    worker_cpus: float
    gpus: int
    cluster_cpus: float
    cluster_gpus: float
    where: str

    @property
    def data_cpus(self) -> float:
        """CPUs that remain for Ray Data to read and decode, for each worker."""
        return (self.cluster_cpus - self.workers * self.worker_cpus) / max(1, self.workers)

    def check(self) -> None:
        """Raise ValueError, saying what is missing, where the run could never start or never be fed."""
        if self.gpus > self.cluster_gpus:
            raise ValueError(
                f"scaling.use_gpu: expected {self.gpus} GPUs for {self.workers} workers, "
                f"the cluster has {self.cluster_gpus:g}"
            )
        if self.workers and self.data_cpus < MIN_DATA_CPUS:
            most = (self.cluster_cpus - self.workers * MIN_DATA_CPUS) / self.workers
            raise ValueError(
                f"{self.workers} workers with {self.worker_cpus:g} CPUs each leave Ray Data no CPU of the cluster's "
                f"{self.cluster_cpus:g}: "
                + (
                    f"set scaling.cpus_per_worker to {most:.2f} or less"
                    if most > 0
                    else "use fewer workers (scaling.num_workers) or a larger cluster"
                )
            )


def resources(settings: Settings) -> Resources:
    """What the run wants, against what the connected cluster has."""
    has = ray.cluster_resources()
    return _resources(settings, has.get("CPU", 0), has.get("GPU", 0), "the cluster")


def preview(settings: Settings) -> Resources:
    """What the run wants, against the cluster at `RAY_ADDRESS` or else this machine; starts no cluster."""
    if settings.scaling.num_workers and os.environ.get("RAY_ADDRESS"):
        with cluster.connect():
            return resources(settings)
    return _resources(settings, os.cpu_count() or 1, torch.cuda.device_count(), "this machine")


def _resources(settings: Settings, cpus: float, gpus: float, where: str) -> Resources:
    workers = settings.scaling.num_workers
    return Resources(
        workers=workers,
        worker_cpus=settings.scaling.cpus_per_worker,
        gpus=max(1, workers) if settings.scaling.use_gpu else 0,
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        where=where,
    )


def train(settings: Settings, observe: Callable[[Event], None], verbose: bool = False) -> dict[str, Any]:
    """The result of a run, on Ray Train workers or, with `scaling.num_workers` 0, in this process.

    Raises:
        RunFailed: a worker raised; what the run had committed is kept, and the same command goes on from there.
        ValueError: the cluster cannot hold the run.
    """
    if settings.scaling.num_workers == 0:
        device = "cuda" if settings.scaling.use_gpu else "cpu"
        torch.set_num_threads(settings.scaling.threads or os.cpu_count() or 1)
        return run.train(settings, InProcess(observe, device))
    with cluster.connect(verbose=verbose):
        available = resources(settings)
        available.check()
        try:
            make_features(settings, observe)
        except RayError as error:
            raise RunFailed(f"trunk features: {getattr(error, 'cause', error)}") from error
        return _fit(settings, available, observe)


def _fit(settings: Settings, available: Resources, observe: Callable[[Event], None]) -> dict[str, Any]:
    mailbox = Mailbox.remote()
    scaling = settings.scaling
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "settings": settings.absolute().model_dump(mode="json"),
            "mailbox": mailbox,
            "data_cpus": available.data_cpus,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if scaling.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=RAY_FOLDER,
            storage_path=_ray_storage(settings),
            worker_runtime_env={"env_vars": memory.ENVIRONMENT},
        ),
    )
    with _delivering(mailbox, observe):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunFailed(_cause(error)) from error
    return run.folder_of(settings).read_json(run.RESULT)


def _ray_storage(settings: Settings) -> str:
    storage = settings.run.storage
    return f"{storage.rstrip('/')}/{settings.run.name}" if "://" in storage else run.folder_of(settings).path


def _cause(error: TrainingFailedError) -> str:
    """The first worker's own message, without the frames of the machinery around it."""
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "_base_exc", failure)
        return f"worker {rank}: {type(cause).__name__}: {cause}"
    return str(error)


def _train_worker(config: dict[str, Any]) -> None:
    settings = Settings(**config["settings"])
    context = ray.train.get_context()
    cores = os.cpu_count() or 1
    torch.set_num_threads(settings.scaling.threads or max(1, cores // context.get_local_world_size()))
    worker = RayWorker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
        mailbox=config["mailbox"],
        data_cpus=config["data_cpus"],
        prefetch=settings.data.prefetch,
    )
    run.train(settings, worker)
    worker.flush()


@dataclass
class RayWorker:
    """A Ray Train worker, as the loop knows it."""

    rank: int
    world_size: int
    device: str
    mailbox: Any
    data_cpus: float
    prefetch: int
    _unsent: list[Event] = field(default_factory=list)
    _sent: float = 0.0

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        steps = stream(source, cursor, epochs, self.rank, self.world_size, self.data_cpus, self.prefetch)
        return (step.to(self.device) for step in steps)

    def emit(self, event: Event) -> None:
        """Tell the driver, at most once a second for steps; ranks other than 0 have nothing of their own to tell."""
        if self.rank == 0:
            self._unsent.append(event)
            if not isinstance(event, StepDone) or time.monotonic() - self._sent > FLUSH_SECONDS:
                self._send()

    def flush(self) -> None:
        """Wait until the driver's mailbox has everything."""
        ray.get(self._send())

    def _send(self) -> ray.ObjectRef[None]:
        sending = self.mailbox.put.remote(self._unsent)
        self._unsent, self._sent = [], time.monotonic()
        return sending


@ray.remote(num_cpus=0)
class Mailbox:
    """Holds what rank 0 told until the driver takes it."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, events: list[Event]) -> None:
        self._events += events

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


@contextlib.contextmanager
def _delivering(mailbox: Any, observe: Callable[[Event], None]) -> Iterator[None]:
    """Meanwhile, a thread brings the mailbox's events to `observe`; at the end all of them have arrived."""
    over = threading.Event()

    def deliver() -> None:
        while not over.wait(FLUSH_SECONDS / 2):
            take()

    def take() -> None:
        for event in ray.get(mailbox.take.remote()):
            observe(event)

    thread = threading.Thread(target=deliver, name="groundray-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        take()
