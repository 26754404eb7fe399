"""Serves searches with Ray Serve: the app of `image_search/http/app.py` in any number of replicas.

    serve run groundray.runtime.serve.deployment:app checkpoint=runs/demo/model images=data/scenes/captions/val

serves the same as `python -m groundray.serve`, and so does a RayService with this import path (k8s/base/search.yaml).
"""
# no `from __future__ import annotations`: Serve needs the class of `app`'s parameter, not its name

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions

from groundray.image_search.http.app import create_app
from groundray.image_search.http.backend import AnswerOne
from groundray.image_search.service import Service
from groundray.runtime import compat

NAME = "search"
MAX_BATCH_SIZE = 16  # queries embedded and compared together: a product of 16 takes as long as three products of one
MAX_ONGOING = 32  # requests in one replica
MAX_QUEUED = 64  # requests that wait for a replica; the next one gets status 503
RETRY_SECONDS = 1
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(BaseModel):
    """Arguments of the application, as `serve run` and a manifest give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(description="model/ folder of a run, or its URL")
    images: str = Field(description="folder or URL of shards with images")
    index: str | None = Field(default=None, description="folder of indexes (default: beside the model's folder)")
    norms: str | None = Field(default=None, description="folder of categories.csv and concreteness.csv")
    replicas: int = Field(default=1, ge=1, description="number of replicas")
    cpus: float = Field(default=1, gt=0, description="CPUs of a replica, which computes in as many threads")
    waiting: int = Field(default=MAX_ONGOING, ge=1, description="maximum number of requests in one replica")
    queued: int = Field(default=MAX_QUEUED, ge=0, description="maximum number of requests that wait for a replica")


def app(arguments: Arguments) -> serve.Application:
    """Return the application. Each replica builds its own FastAPI app: an app with mounts cannot be pickled.

    Replicas make a missing index, and share its parts.
    """

    def build_in_replica() -> FastAPI:
        torch.set_num_threads(max(1, int(arguments.cpus)))
        service = Service.open(arguments.checkpoint, arguments.images, arguments.index, arguments.norms)
        return create_app(service, batch_queries)

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
def serving(arguments: Arguments, host: str, port: int) -> Iterator[str]:
    """Serve the application on the connected cluster inside the context. Yields its address once it is ready.

    If Serve already runs on the cluster, its other applications stay, and its own host and port are used.

    Raises:
        ValueError: the port is in use.
        RuntimeError: a replica cannot start; the message holds Serve's description.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    already_running = bool(serve.status().proxies)
    if not already_running:
        _check_port(host, port)
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=QUIET)
    try:
        serve.run(app(arguments), name=NAME, route_prefix="/")
        options = compat.http_options()
        yield f"http://{options.host}:{options.port}"
    finally:
        if already_running or not os.environ.get("RAY_ADDRESS"):
            serve.delete(NAME)  # a cluster that this process started ends with it, and Serve too
        else:
            serve.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raise ValueError if a port is in use."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port: expected a free port on {host}, got {port} ({error.strerror or error}): give another"
            ) from None
