"""Search over HTTP: response times of one client and of many concurrent clients."""

from __future__ import annotations

import copy
import http.client
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import psutil

from groundray.benchmarks.measure import Column, Figure, Missing, Report, Row, machine, megabytes, seconds
from groundray.benchmarks.session import Case, Session
from groundray.image_search import towers
from groundray.image_search.index import open_pool
from groundray.runtime import cluster
from groundray.storage.folder import Folder

HOST = "127.0.0.1"
SINGLE_FRACTION = 0.25  # of the duration for many clients, for one
WARM_FRACTION = 0.2  # of a period, after which memory is measured first
TIMEOUT_SECONDS = 60
FEWEST_SECONDS = 5  # for all clients, where the service has taken long to start
LAST_SECONDS = 10  # in which the last requests of the two periods are answered
PHRASES = 20
REQUESTS = "all requests"
UNAVAILABLE = 503
REPLICA = "ray::ServeReplica:search"  # the title of its process
COLUMNS = (
    Column("answers/s", lambda rate: f"{rate:,.1f}", ("rate",)),
    Column("median", seconds, ("median",)),
    Column("99th\npercentile", seconds, ("p99",)),
    Column("503", lambda count: f"{count:,.0f}", ("refused",)),
    Column("errors", lambda count: f"{count:,.0f}", ("errors",)),
    Column("memory at first /\nat the end", megabytes, ("memory", "memory_after")),
)


class Request(NamedTuple):
    """A request: its kind, and its path."""

    kind: str
    path: str


@dataclass
class ClientLog:
    """Response times in seconds by kind of request, and counts by kind and status (0: no response)."""

    times: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, kind: str, status: int, took: float) -> None:
        self.statuses[kind, status] += 1
        if status == http.client.OK:
            self.times.setdefault(kind, []).append(took)


def measure(
    checkpoint: str,
    images: str,
    index: str | None,
    clients: int,
    replicas: int,
    duration: float,
    session: Session,
) -> Report:
    """Run the benchmark `service`.

    Args:
        checkpoint, images: the model and the images to serve.
        index: folder of indexes (default: beside the model's folder).
        clients: number of concurrent clients.
        duration: seconds of the period with all clients, at most, if the session's time is limited.
        session: decides how much time there is.

    Raises:
        FileNotFoundError, ValueError: the model or the images are invalid.
    """
    towers.check_searchable(checkpoint)
    open_pool(images)
    session.note(f"starting Ray and {_plural(replicas, 'replica')}")
    rows: list[Row] = []
    with cluster.connect():
        from groundray.runtime.serve.deployment import (
            Arguments,
            serving,
        )  # brings Serve, which the cluster has made quiet

        model, pool = str(Folder.at(checkpoint)), str(Folder.at(images))
        arguments = Arguments(checkpoint=model, images=pool, index=index, replicas=replicas)
        with serving(arguments, HOST, free_port()) as address:
            mix = requests(address)
            duration = min(duration, max(FEWEST_SECONDS, (session.left() - LAST_SECONDS) / (1 + SINGLE_FRACTION)))
            periods = {count: part * duration for count, part in ((1, SINGLE_FRACTION), (clients, 1))}
            titles = {count: f"{_plural(count, 'client')} for {seconds:.0f} s" for count, seconds in periods.items()}
            session.expect(REQUESTS, 1.0)
            session.plan([Case(titles[count], (REQUESTS,), periods[count], warm_up=False) for count in periods])
            with session.until_stopped():
                for count, period in periods.items():

                    def ask(count: int = count, period: float = period) -> dict[str, float]:
                        tick = partial(session.tell, f"{titles[count]}: {REQUESTS}", new=False)
                        found, stopped = run_clients(address, mix, count, period, tick)
                        rows.extend(found)
                        session.stopped = session.stopped or stopped
                        return {"seconds": period}

                    session.once(titles[count], REQUESTS, ask)
    caption = (
        "Clients on the machine of the service, each with one request at a time; "
        f"{_plural(replicas, 'replica')}. The service answers 503 if too many wait. Memory of "
        f"the replicas after {WARM_FRACTION:.0%} of the time and at its end."
    )
    return Report("service", caption, COLUMNS, rows, machine())


def run_clients(
    address: str, mix: Sequence[Request], clients: int, duration: float, tick: Callable[[], None] = lambda: None
) -> tuple[list[Row], bool]:
    """Send requests from concurrent clients for some seconds.

    Args:
        tick: is called every second.

    Returns:
        A row for each kind of request, and whether a KeyboardInterrupt has ended them early.
    """
    log, stop, lock = ClientLog(), threading.Event(), threading.Lock()
    threads = [
        threading.Thread(target=run_client, args=(address, [*mix[start:], *mix[:start]], log, lock, stop), daemon=True)
        for start in (number * len(mix) // clients for number in range(clients))
    ]
    stopped, started = False, time.perf_counter()
    before: Figure = Missing("interrupted")
    for thread in threads:
        thread.start()
    try:
        _sleep(WARM_FRACTION * duration, tick)
        before = memory()
        _sleep((1 - WARM_FRACTION) * duration, tick)
        stop.set()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:  # requests that are not answered by now are not counted
        stopped, duration = True, min(duration, time.perf_counter() - started)
        stop.set()
    after = memory()
    with lock:
        log = copy.deepcopy(log)  # clients of a period that was stopped may still be answered
    rows = []
    for kind in dict.fromkeys(request.kind for request in mix):
        times = log.times.get(kind, [])
        none = Missing("no answer")
        errors = sum(
            count for (of, status), count in log.statuses.items() if of == kind and status not in (200, UNAVAILABLE)
        )
        figures: dict[str, Figure] = {
            "rate": len(times) / duration,
            "median": float(np.median(times)) if times else none,
            "p99": float(np.percentile(times, 99)) if times else none,
            "refused": log.statuses[kind, UNAVAILABLE],
            "errors": errors,
            "memory": before,
            "memory_after": after,
        }
        rows.append(Row({"clients": clients}, kind, figures, {"seconds": times}))
    return rows, stopped


def _sleep(seconds: float, tick: Callable[[], None]) -> None:
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        time.sleep(min(left, 1.0))
        tick()


def run_client(
    address: str, mix: Sequence[Request], log: ClientLog, lock: threading.Lock, stop: threading.Event
) -> None:
    """Send one request after the other on one connection until `stop` is set."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or HOST, url.port, timeout=TIMEOUT_SECONDS)
    for kind, path in itertools.cycle(mix):
        if stop.is_set():
            break
        started = time.perf_counter()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request reopens it
            status = 0
        with lock:
            log.add(kind, status, time.perf_counter() - started)
    connection.close()


def requests(address: str) -> list[Request]:
    """Return typical requests: words, mixes of words and images, paths between them, and match maps."""
    words = [word["text"] for word in fetch(address, "/words")["words"]]
    images = [image["id"] for image in fetch(address, f"/pool?k={PHRASES}")["results"]]
    grounded = "grounding" in fetch(address, "/healthz")["stages"]
    mix = []
    for number, image in zip(range(PHRASES), itertools.cycle(images), strict=False):
        phrase = f"{words[number % len(words)]} {words[(7 * number + 3) % len(words)]}"
        query, alphas = {"text": phrase, "image": image}, [step / 20 for step in range(21)]
        mix += [
            Request("a text", f"/search?{urlencode({'text': phrase})}"),
            Request("a mix", f"/search?{urlencode(query)}"),
            Request("21 mixes", f"/search?{urlencode({**query, 'alpha': alphas}, doseq=True)}"),
            *([Request("a match map", f"/match-map?{urlencode(query)}")] if grounded else []),
            Request("where a phrase lands", f"/words?{urlencode({'text': phrase})}"),
            Request("a thumbnail", f"/thumbnails/{quote(image, safe='')}"),
        ]
    return mix


def fetch(address: str, path: str) -> Any:
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or HOST, url.port, timeout=TIMEOUT_SECONDS)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def memory() -> Figure:
    """Return the resident bytes of the replicas in this process's own cluster."""
    replicas = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                replicas += process.memory_info().rss
        except psutil.Error:  # ended meanwhile
            continue
    return float(replicas) if replicas else Missing("the replicas are on other machines")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]
