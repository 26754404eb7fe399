"""Serves searches with Ray Serve: the app of `image_search/http/app.py` in any number of replicas.

    serve run groundray.runtime.serve.deployment:app checkpoint=runs/demo/model images=data/scenes/captions/val

serves the same as `python -m groundray.serve`, and so does a RayService with this import path (k8s/base/search.yaml).
"""
# no `from __future__ import annotations`: Serve needs the class of `app`'s parameter, not its name

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions

from groundray.image_search.http.address import listen_address, url
from groundray.image_search.http.app import create_app
from groundray.image_search.http.backend import AnswerOne
from groundray.image_search.http.same_origin import check_hosts
from groundray.image_search.index import FOLDER
from groundray.image_search.service import Service
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.runtime import compat
from groundray.runtime.ray_address import given_address
from groundray.runtime.serve import proxy
from groundray.storage.user_cache import user_cache
from groundray.tracking.model_uris import DOWNLOADS, locate

NAME = "search"
MAX_BATCH_SIZE = 16  # queries embedded and compared together: a product of 16 takes as long as three products of one
MAX_ONGOING = 32  # requests in one replica
MAX_QUEUED = 64  # requests that wait for a replica; the next one gets status 503
RETRY_SECONDS = 1
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(BaseModel):
    """Arguments of the application, as `serve run` and a manifest give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(description="model/ folder of a run, its URL, or MLflow's name of a model")
    images: str = Field(description="folder or URL of shards with images")
    index: str | None = Field(
        default=None,
        description="folder of indexes (default: beside the model's folder; of a model in MLflow, in the user's cache)",
    )
    norms: str | None = Field(default=None, description="folder of categories.csv and concreteness.csv")
    replicas: int = Field(default=1, ge=1, description="number of replicas")
    cpus: float = Field(default=1, gt=0, description="CPUs of a replica, which computes in as many threads")
    waiting: int = Field(default=MAX_ONGOING, ge=1, description="maximum number of requests in one replica")
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names that a request's Host may have besides localhost and IP addresses; *.example.org stands for "
        "all names below it, * for every name",
    )
    queued: int = Field(default=MAX_QUEUED, ge=0, description="maximum number of requests that wait for a replica")

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, hosts: Any) -> Any:
        """Take names separated by commas, as `serve run` gives them."""
        return tuple(filter(None, hosts.replace(" ", "").split(","))) if isinstance(hosts, str) else hosts

    @field_validator("hosts")
    @classmethod
    def _check(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        check_hosts(hosts)
        return hosts


def app(arguments: Arguments) -> serve.Application:
    """Return the application. Each replica builds its own FastAPI app: an app with mounts cannot be pickled.

    Replicas make a missing index: they share its parts, and one of them makes the files of the whole. They all serve
    what MLflow's name of a model stands for now.
    """
    downloads = user_cache(arguments.index) / DOWNLOADS
    located = locate(arguments.checkpoint, logging.getLogger(__name__).info, downloads)
    index = arguments.index or (str(user_cache() / FOLDER) if located.model else None)

    def build_in_replica() -> FastAPI:
        compat.listen_at_node_address()
        torch.set_num_threads(max(1, int(arguments.cpus)))
        service = Service.open(located.place, arguments.images, index, arguments.norms)
        return create_app(service, batch_queries, hosts=arguments.hosts)

    deployment: Any = serve.deployment(
        serve.ingress(build_in_replica)(),
        name=NAME,
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.waiting,
        max_queued_requests=arguments.queued,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_SECONDS),
        ray_actor_options={"num_cpus": arguments.cpus},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=5,
        logging_config=QUIET,
    )
    return deployment.bind()


def batch_queries(answer: Callable[..., Any]) -> AnswerOne:
    """Turn a function that answers several queries into one that answers a query in a batch with those that wait.

    A batch does not wait for more queries: those that arrive while it is computed form the next one.
    """
    batched: Any = serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0)(answer)
    return batched


@contextlib.contextmanager
def serving(arguments: Arguments, host: str, port: int, timeout: float = STALL_SECONDS) -> Iterator[str]:
    """Serve the application on the connected cluster inside the context. Yields its address once it is ready.

    If Serve already runs on the cluster, its other applications stay, and its own host, port and timeout are used.

    Args:
        timeout: seconds until a stalled upload, and a request that is not answered, get status 408.

    Raises:
        ValueError: the host or the port cannot be used.
        RuntimeError: a replica cannot start; the message holds Serve's description.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    already_running = running_at() is not None
    if not already_running:
        host, port = listen_address(host, port)
        serve.start(
            http_options=HTTPOptions(host=host, port=port, request_timeout_s=timeout),
            controller_options={"runtime_env": {"env_vars": proxy.environment(timeout)}},  # the proxies inherit it
            logging_config=QUIET,
        )
    try:
        serve.run(app(arguments), name=NAME, route_prefix="/")
        address = running_at()
        assert address is not None
        yield address
    finally:
        if already_running or given_address() is None:
            serve.delete(NAME)  # a cluster that this process started ends with it, and Serve too
        else:
            serve.shutdown()


def running_at() -> str | None:
    """Return the URL of the Serve that runs on the connected cluster; None if there is none."""
    if not serve.status().proxies:
        return None
    options = compat.http_options()
    return url(options.host, options.port)
