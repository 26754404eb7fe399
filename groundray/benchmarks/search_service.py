"""Search over HTTP: what one client waits for, and what many at once do to the service."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import numpy as np

from groundray.benchmarks.measure import MACHINE, Column, Figure, Missing, Report, Row, machine, megabytes, seconds
from groundray.image_search import towers
from groundray.image_search.index import open_pool
from groundray.runtime import cluster
from groundray.storage.folder import Folder

HOST = "127.0.0.1"
ALONE_SHARE = 0.25  # of the seconds that many clients ask, for one
WARM_SHARE = 0.2  # of a spell, after which memory is looked at for the first time
PATIENCE_SECONDS = 60
PHRASES = 20
REFUSED = 503
COLUMNS = (
    Column("answers/s", lambda rate: f"{rate:,.1f}", ("rate",)),
    Column("median", seconds, ("median",)),
    Column("99th\npercentile", seconds, ("p99",)),
    Column("503", lambda count: f"{count:,.0f}", ("refused",)),
    Column("errors", lambda count: f"{count:,.0f}", ("errors",)),
    Column("memory at first /\nat the end", megabytes, ("memory", "memory_after")),
)


class Asked(NamedTuple):
    """A kind of request, and its path."""

    kind: str
    path: str


@dataclass
class Told:
    """What clients were told, by the kind of request: seconds of answers, and how often each status came (0: none)."""

    times: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, kind: str, status: int, took: float) -> None:
        self.statuses[kind, status] += 1
        if status == http.client.OK:
            self.times.setdefault(kind, []).append(took)


def measure(
    checkpoint: str, images: str, clients: int, replicas: int, lasting: float, note: Callable[[str], None]
) -> Report:
    """The benchmark `service`.

    Args:
        checkpoint, images: what is served.
        clients: that ask at once.
        lasting: seconds that they do so.
        note: told what is done next.

    Raises:
        FileNotFoundError, ValueError: the model or the images cannot be used.
    """
    towers.check_searchable(checkpoint)
    open_pool(images)
    note(f"service: starting {replicas} replica{'s' if replicas > 1 else ''}")
    rows: list[Row] = []
    with cluster.connect():
        from groundray.runtime.serve.deployment import (
            Arguments,
            serving,
        )  # brings Serve, which the cluster has made quiet

        model, pool = str(Folder.at(checkpoint)), str(Folder.at(images))
        with serving(Arguments(checkpoint=model, images=pool, replicas=replicas), HOST, free_port()) as address:
            asked = requests(address)
            for count, spell in ((1, ALONE_SHARE * lasting), (clients, lasting)):
                note(f"service: {count} client{'s' if count > 1 else ''} for {spell:.0f} s")
                rows += spent(address, asked, count, spell)
    caption = (
        "Clients that ask for the next thing when they have the answer, on this machine, beside the service of "
        f"{replicas} replica{'s' if replicas > 1 else ''}. A 503 is the service's own, where too many wait. Memory is "
        f"that of the replicas, after {WARM_SHARE:.0%} of the time and at its end."
    )
    return Report("service", caption, COLUMNS, rows, machine())


def spent(address: str, asked: Sequence[Asked], clients: int, spell: float) -> list[Row]:
    """A spell of seconds in which so many clients ask in turns, in a row for each kind of request."""
    told, stop, lock = Told(), threading.Event(), threading.Lock()
    each = [
        threading.Thread(target=ask, args=(address, [*asked[start:], *asked[:start]], told, lock, stop), daemon=True)
        for start in (number * len(asked) // clients for number in range(clients))
    ]
    for one in each:
        one.start()
    time.sleep(WARM_SHARE * spell)
    before = memory()
    time.sleep((1 - WARM_SHARE) * spell)
    stop.set()
    for one in each:
        one.join()
    after = memory()
    rows = []
    for kind in dict.fromkeys(one.kind for one in asked):
        times = told.times.get(kind, [])
        nobody = Missing("no answer")
        errors = sum(
            count for (of, status), count in told.statuses.items() if of == kind and status not in (200, REFUSED)
        )
        figures: dict[str, Figure] = {
            "rate": len(times) / spell,
            "median": float(np.median(times)) if times else nobody,
            "p99": float(np.percentile(times, 99)) if times else nobody,
            "refused": told.statuses[kind, REFUSED],
            "errors": errors,
            "memory": before,
            "memory_after": after,
        }
        rows.append(Row({"clients": clients}, kind, figures, {"seconds": times}))
    return rows


def ask(address: str, asked: Sequence[Asked], told: Told, lock: threading.Lock, stop: threading.Event) -> None:
    """A client: ask for one thing after the other on one connection, until it is stopped."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or HOST, place.port, timeout=PATIENCE_SECONDS)
    for kind, path in itertools.cycle(asked):
        if stop.is_set():
            break
        started = time.perf_counter()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            status = 0
        with lock:
            told.add(kind, status, time.perf_counter() - started)
    connection.close()


def requests(address: str) -> list[Asked]:
    """What people ask: words, mixes, the whole way from an image to a word, and why; each in many forms."""
    words = [word["text"] for word in fetched(address, "/words")["words"]]
    images = [image["id"] for image in fetched(address, f"/pool?k={PHRASES}")["results"]]
    grounded = "grounding" in fetched(address, "/healthz")["stages"]
    found = []
    for number, image in zip(range(PHRASES), itertools.cycle(images), strict=False):
        phrase = f"{words[number % len(words)]} {words[(7 * number + 3) % len(words)]}"
        mix, way = {"text": phrase, "image": image}, [step / 20 for step in range(21)]
        found += [
            Asked("a text", f"/search?{urlencode({'text': phrase})}"),
            Asked("a mix", f"/search?{urlencode(mix)}"),
            Asked("21 mixes", f"/search?{urlencode({**mix, 'alpha': way}, doseq=True)}"),
            *([Asked("a match map", f"/match-map?{urlencode(mix)}")] if grounded else []),
            Asked("where a phrase lands", f"/words?{urlencode({'text': phrase})}"),
            Asked("a thumbnail", f"/thumbnails/{quote(image, safe='')}"),
        ]
    return found


def fetched(address: str, path: str) -> Any:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or HOST, place.port, timeout=PATIENCE_SECONDS)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def memory() -> Figure:
    """Bytes of resident memory of the replicas that this process's cluster runs."""
    try:
        pages = sum(
            int((process / "statm").read_text(encoding="ascii").split()[1])
            for process in MACHINE.glob("[0-9]*")
            if _is_own_replica(process)
        )
    except OSError:
        return Missing("a replica has ended meanwhile, or this is no Linux")
    return float(pages * os.sysconf("SC_PAGE_SIZE")) if pages else Missing("the replicas are on other machines")


def _is_own_replica(process: Path) -> bool:
    """Whether a process is a replica of a cluster that this process has started."""
    try:
        if not (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica:search"):
            return False
        own, parent = str(os.getpid()), process.name
        while parent not in ("0", "1", own):
            stat = (MACHINE / parent / "stat").read_text(encoding="utf-8")
            parent = stat.rpartition(")")[2].split()[1]
    except OSError:
        return False
    return parent == own


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]
