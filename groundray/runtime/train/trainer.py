"""Ray's `TorchTrainer` with groundray's policies for scaling and failures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.train.torch import TorchTrainer

from groundray.config import Settings
from groundray.runtime import compat
from groundray.runtime.train.failure_policy import FailurePolicy
from groundray.runtime.train.group import PartialGroupCleanup
from groundray.runtime.train.reports import LastValidation
from groundray.runtime.train.scaling_policy import ElasticWorkers, FixedWorkers, WaitTimeout
from groundray.training.watchdog import grace

# between two polls of the workers by their controller, which takes one report of each: a worker that has reported
# several validations in a row ends when the last is taken
POLL_SECONDS = 0.5


class Trainer(TorchTrainer):
    """A `TorchTrainer` whose controller uses `FixedWorkers` or `ElasticWorkers`, and `FailurePolicy`.

    Args:
        settings: the run's settings.
        mailbox: handle of the run's `mailbox.Mailbox`.
    """

    def __init__(self, *args: Any, settings: Settings, mailbox: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._settings, self._mailbox = settings, mailbox

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        scaling = self._settings.scaling
        elastic = scaling.min_workers < scaling.max_workers
        workers = f"{scaling.min_workers} to {scaling.max_workers}" if elastic else f"{scaling.max_workers}"
        each = f"{scaling.cpus_per_worker:g} CPUs{' and a GPU' if scaling.use_gpu else ''}"
        each += f" of type {scaling.accelerator_type}" if scaling.accelerator_type else ""
        wait_timeout = WaitTimeout(scaling.wait_minutes * 60, f"{workers} workers with {each} each", self._mailbox)
        kwargs["scaling_policy"] = (
            ElasticWorkers(self.scaling_config, wait_timeout, self._settings.worker_counts)
            if elastic
            else FixedWorkers(self.scaling_config, wait_timeout)
        )
        kwargs["failure_policy"] = FailurePolicy(scaling.max_failures, self._mailbox)
        states = [callback for callback in kwargs["callbacks"] if isinstance(callback, compat.StateManagerCallback)]
        kwargs["callbacks"] = [PartialGroupCleanup(), *kwargs["callbacks"], *map(LastValidation, states)]
        hang = scaling.hang_minutes * 60
        timeout, interval = compat.WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR, compat.HEALTH_CHECK_INTERVAL_S_ENV_VAR
        environment = {
            # the actor that frees the resources of a dead driver's workers looks for the driver at this address, or
            # else in the newest cluster of the machine (Ray 2.60)
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            timeout: os.environ.get(timeout) or str(hang + 1.5 * grace(hang)),
            interval: os.environ.get(interval) or str(POLL_SECONDS),
        }
        with _controller_environment(environment):
            return super()._initialize_and_run_controller(**kwargs)


@contextlib.contextmanager
def _controller_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables of a controller that starts inside the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    compat.ENV_VARS_TO_PROPAGATE.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
