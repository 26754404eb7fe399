"""Serves searches with Ray Serve: the app of `image_search/http/app.py` in any number of replicas.

    serve run groundray.runtime.serve.deployment:app checkpoint=runs/demo/model images=data/scenes/captions/val

serves the same as `python -m groundray.serve`, and so does a RayService with this import path (k8s/base/search.yaml).
"""
# no `from __future__ import annotations`: Serve needs the class of `app`'s parameter, not its name

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions
from starlette.types import ASGIApp

from groundray.image_search.http.address import listen_address, url
from groundray.image_search.http.app import create_app
from groundray.image_search.http.auth_token import VARIABLE, find_token
from groundray.image_search.http.backend import Batch
from groundray.image_search.http.rate_limit import TokenBuckets
from groundray.image_search.http.renewal import RenewedApp
from groundray.image_search.http.same_origin import check_hosts
from groundray.image_search.index import FOLDER
from groundray.image_search.query import MAX_RERANK, RERANK, Outcome, PreparedQuery
from groundray.image_search.service import Service, state_of
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.image_search.uses import keep_marked
from groundray.runtime import compat
from groundray.runtime.ray_address import given_address
from groundray.runtime.serve import proxy
from groundray.runtime.serve.metrics import RayMetrics
from groundray.storage.folder import Folder
from groundray.storage.user_cache import user_cache
from groundray.tracking.model_uris import DOWNLOADS, Located, find_model, locate, locate_found, readable_place

NAME = "search"
MAX_BATCH_SIZE = 16  # queries embedded and compared together: a product of 16 takes as long as three products of one
# Requests in one replica, where they wait for the thread that computes. For those that wait outside, Serve asks a full
# replica again only after up to half a second, so that it idles: 50 clients got 49 answers a second with 32 of them in
# the replica, and 101 to 110 with all of them.
MAX_ONGOING = 128
MAX_QUEUED = 32  # requests that wait for a replica; the next one gets status 503
RETRY_SECONDS = 1
Asked = tuple[Callable[..., Any], PreparedQuery]  # a query, and what answers several
QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Arguments(BaseModel):
    """Arguments of the application, as `serve run` and a manifest give them."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)  # which may be a token

    checkpoint: str = Field(description="model/ folder of a run, its URL, or MLflow's name of a model")
    images: str = Field(description="folder or URL of shards with images")
    index: str | None = Field(
        default=None,
        description="folder of indexes (default: beside the model's folder; of a model in MLflow, in the user's cache)",
    )
    norms: str | None = Field(default=None, description="folder of categories.csv and concreteness.csv")
    rerank: int = Field(
        default=RERANK,
        ge=0,
        le=MAX_RERANK,
        description="number of the nearest images that the match map ranks again; 0: none",
    )
    replicas: int = Field(default=1, ge=1, description="number of replicas")
    cpus: float = Field(default=1, gt=0, description="CPUs of a replica, which computes in as many threads")
    waiting: int = Field(default=MAX_ONGOING, ge=1, description="maximum number of requests in one replica")
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names that a request's Host may have besides localhost and IP addresses; *.example.org stands for "
        "all names below it, * for every name",
    )
    queued: int = Field(default=MAX_QUEUED, ge=1, description="maximum number of requests that wait for a replica")
    auth_token: SecretStr | None = Field(
        default=None, description=f"token that requests must know (default: {VARIABLE} of the environment, or none)"
    )
    auth_token_file: str | None = Field(default=None, description="file that holds the token")
    rate_limit: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="requests per second of one client (default: no limit)"
    )
    trust_proxy: bool = Field(
        default=False, description="a proxy in front says in X-Forwarded-For and X-Forwarded-Proto who the client is"
    )
    watch: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="seconds between two looks whether the model or the images have changed, to take them up; 0: never",
    )

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
    what MLflow's name of a model stands for now, or with `watch` what it stands for later.
    """
    downloads, tell = user_cache(arguments.index) / DOWNLOADS, logging.getLogger(__name__).info
    located = locate(arguments.checkpoint, tell, downloads)
    given = arguments.auth_token.get_secret_value() if arguments.auth_token else None
    token = find_token(given, arguments.auth_token_file, os.environ)
    index = arguments.index or (str(user_cache() / FOLDER) if located.model else None)

    def build_in_replica() -> ASGIApp:
        compat.listen_at_node_address()
        torch.set_num_threads(max(1, int(arguments.cpus)))
        batch, metrics, rate = batch_queries(), RayMetrics(), arguments.rate_limit
        buckets = None if rate is None else TokenBuckets(rate, replicas=arguments.replicas)  # they outlive a swap
        model = FollowedModel(located, arguments.images, downloads, tell)

        def open_app(served: Located) -> FastAPI:
            service = Service.open(served.place, arguments.images, index, arguments.norms, arguments.rerank)
            cached = [downloads] if served.place.startswith(f"{downloads}/") else []
            keep_marked([*service.search.folders, *cached], service)
            return create_app(
                service,
                batch,
                hosts=arguments.hosts,
                token=token,
                buckets=buckets,
                trust_proxy=arguments.trust_proxy,
                metrics=metrics,
            )

        if not arguments.watch:
            return open_app(located)
        earlier = partial(open_app, located) if located.model else None
        return RenewedApp(model.look, lambda: open_app(model.locate()), arguments.watch, earlier)

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


class FollowedModel:
    """The model and the images of a service, as they are now: what MLflow's name of the model stands for may change,
    and so may what is at a path or URL.

    Args:
        located: where the model was when the service was deployed.
        images: folder or URL of shards.
        downloads: folder that keeps downloaded models.
        tell: receives lines for the user.
    """

    def __init__(self, located: Located, images: str, downloads: Folder, tell: Callable[[str], None]):
        self._located, self._images, self._downloads, self._tell = located, images, downloads, tell
        self._model = located.model

    def look(self) -> str:
        """Return a text that changes when the model or the images do. Downloads nothing: a download that fails is
        repeated later and later, unlike a look.

        Raises:
            OSError: there is no such model, there are no images, or a server or store does not answer.
        """
        if self._model is None:
            return state_of(self._located.place, self._images)
        # the server of the machine that has found the model: this one may have another by default
        self._model = find_model(self._model.asked, self._model.server)
        return f"{self._model.uri} {self._model.location} {state_of(readable_place(self._model), self._images)}"

    def locate(self) -> Located:
        """Return where the model is that the last look has found.

        Raises:
            OSError: its files cannot be used.
        """
        return locate_found(self._model, self._tell, self._downloads) if self._model else self._located


def batch_queries() -> Batch:
    """Return what turns a function that answers several queries into one that answers a query in a batch with those
    that wait.

    A batch does not wait for more queries: those that arrive while it is computed form the next one. Functions of
    several applications share one queue, since Serve keeps a queue, and all that its function refers to, for good.
    """

    async def answer_each(asked: list[Asked]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for answer in {id(answer): answer for answer, _ in asked}.values():  # one, but while a new model is taken up
            places = [place for place, (other, _) in enumerate(asked) if other is answer]
            try:
                found: list[Outcome] = await answer([asked[place][1] for place in places])
            except Exception as error:  # noqa: BLE001  of one application, which fails its own queries alone
                found = [error] * len(places)
            outcomes |= dict(zip(places, found, strict=True))
        return [outcomes[place] for place in range(len(asked))]

    batched: Any = serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0)(answer_each)
    return lambda answer: lambda query: batched((answer, query))


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
