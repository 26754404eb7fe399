"""Search on Ray Serve: the app of `image_search/http/app.py` in as many replicas as are asked for.

    serve run groundray.runtime.serve.deployment:app checkpoint=runs/demo/model images=data/scenes/captions/val

gives what `python -m groundray.serve` gives, as does a RayService whose manifest names the same (k8s/base/search.yaml).
"""
# no `from __future__ import annotations`: Serve looks at the class that `app` takes, not at its name

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
TOGETHER = 16  # queries that are embedded and compared in one go: one product of 16 takes the time of three of one
WAITING_A_REPLICA = 32  # requests that a replica has at the same time
WAITING_OUTSIDE = 64  # requests that wait for a replica; the next one is answered 503
RETRY_SECONDS = 1
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(BaseModel):
    """What is served, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(description="a run's model/ folder, or a URL of one")
    images: str = Field(description="folder or URL of shards with images")
    index: str | None = Field(default=None, description="where indexes are kept (default: beside the model's folder)")
    norms: str | None = Field(default=None, description="folder of categories.csv and concreteness.csv")
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0, description="of a replica, which computes in as many threads")
    waiting: int = Field(default=WAITING_A_REPLICA, ge=1, description="requests that a replica has at the same time")
    queued: int = Field(default=WAITING_OUTSIDE, ge=0, description="requests that wait for a replica")


def app(arguments: Arguments) -> serve.Application:
    """The application: a builder that each replica calls, since an app with mounts cannot be pickled.

    An index that is missing is made by the replicas, who share its parts.
    """

    def build_in_replica() -> FastAPI:
        torch.set_num_threads(max(1, int(arguments.cpus)))
        service = Service.open(arguments.checkpoint, arguments.images, arguments.index, arguments.norms)
        return create_app(service, together)

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


def together(answer: Callable[..., Any]) -> AnswerOne:
    """A function that answers several queries, as one that answers a query with those that are waiting. It waits for no
    more to come: whatever arrives while a batch is computed is the next one."""
    batched: Any = serve.batch(max_batch_size=TOGETHER, batch_wait_timeout_s=0)(answer)
    return batched


@contextlib.contextmanager
def serving(arguments: Arguments, host: str, port: int) -> Iterator[str]:
    """Meanwhile the connected cluster serves the application; its address. It is ready when the block begins.

    Where Serve runs on the cluster already, other applications stay as they are, and its own host and port count.

    Raises:
        ValueError: the port is taken.
        RuntimeError: a replica cannot be started; the message holds Serve's account of it.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    there = bool(serve.status().proxies)
    if not there:
        _is_free(host, port)
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=QUIET)
    try:
        serve.run(app(arguments), name=NAME, route_prefix="/")
        options = compat.http_options()
        yield f"http://{options.host}:{options.port}"
    finally:
        if there or not os.environ.get("RAY_ADDRESS"):
            serve.delete(NAME)  # a cluster of this process's own ends with it, and Serve too
        else:
            serve.shutdown()


def _is_free(host: str, port: int) -> None:
    """Raise ValueError where a port cannot be listened at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port: expected one to listen at on {host}, got {port} ({error.strerror or error}): give another"
            ) from None
