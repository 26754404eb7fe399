"""The search benchmarks: what they call recall and time is that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from groundray import bench
from groundray.benchmarks import search_service, vector_search
from groundray.benchmarks.measure import Missing
from groundray.benchmarks.search_service import ClientLog, Request
from groundray.benchmarks.session import Session
from groundray.cli.command import EXIT_USAGE


def test_all_contenders_are_measured_against_the_exact_nearest() -> None:
    report = vector_search.measure(1500, 16, threads=1, session=Session(repeats=3))
    rows = report.rows[: -len(vector_search.POSITIONS)]
    found = {(row.contender, row.case["together"]): row.figures for row in rows}
    assert len(found) == 4 * len(vector_search.TOGETHER)
    for together in vector_search.TOGETHER:
        assert found["FAISS flat", together]["recall"] == 1
        assert found[vector_search.OURS, together]["recall"] > 0.99  # of vectors that are rounded to float16
        assert 0.8 < found["FAISS HNSW", together]["recall"] <= 1  # type: ignore[operator]
        assert 0.8 < found["FAISS IVF", together]["recall"] <= 1  # type: ignore[operator]
    assert all(len(row.runs["seconds"]) == 3 for row in report.rows)
    few, many = (row.figures["median"] for row in report.rows[len(rows) :])
    assert 0 < few < many  # type: ignore[operator]


def test_without_faiss_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(vector_search.importlib, "import_module", missing)
    report = vector_search.measure(100, 8, threads=1, session=Session(repeats=1))
    contenders = [row.contender for row in report.rows if vector_search.AGAIN not in row.contender]
    assert contenders == [vector_search.OURS, "FAISS"] * len(vector_search.TOGETHER)
    assert report.rows[1].figures["median"] == Missing("pip install groundray[search]")


def test_each_call_asks_for_the_next_queries() -> None:
    seen: list[list[float]] = []

    def nearest(queries: np.ndarray, k: int) -> None:
        seen.append(queries[:, 0].tolist())

    run = vector_search.timed(nearest, np.arange(5.0)[:, None], together=3)  # type: ignore[arg-type]
    assert all(run()["seconds"] >= 0 for _ in range(3))
    assert seen == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


class Answers(BaseHTTPRequestHandler):
    """Refuses every third request of a kind, fails at every second of another, and says nothing to a third."""

    protocol_version = "HTTP/1.1"
    counts: dict[str, int] = {}  # noqa: RUF012
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            count = self.counts[self.path] = self.counts.get(self.path, 0) + 1
        if self.path == "/silent":
            self.close_connection = True
            return
        status = {"/busy": 503 if count % 3 == 0 else 200, "/broken": 500 if count % 2 == 0 else 200}[self.path]
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_client_responses_are_counted_by_status(address: str) -> None:
    mix = [Request(kind, f"/{kind}") for kind in ("busy", "broken", "silent")]
    found, stopped = search_service.run_clients(address, mix, clients=3, duration=0.5)
    assert not stopped
    rows = {row.contender: row for row in found}
    busy, broken, silent = (rows[kind] for kind in ("busy", "broken", "silent"))
    assert busy.figures["errors"] == silent.figures["refused"] == 0
    answered = len(busy.runs["seconds"])
    assert busy.figures["refused"] == pytest.approx(answered / 2, abs=2)
    assert busy.figures["rate"] == answered / 0.5
    assert broken.figures["errors"] == pytest.approx(len(broken.runs["seconds"]), abs=2)
    assert silent.figures["errors"] > 0  # type: ignore[operator]
    assert silent.figures["median"] == Missing("no answer")
    assert busy.figures["memory"] == Missing("the replicas are on other machines")


def test_clients_that_are_interrupted_tell_what_they_have_seen(address: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    mix = [Request("busy", "/busy")]
    (busy,), stopped = search_service.run_clients(address, mix, clients=1, duration=60, tick=interrupt)
    assert stopped
    assert busy.figures["memory"] == Missing("interrupted")
    assert 0 < len(busy.runs["seconds"]) / busy.figures["rate"] < 30  # type: ignore[operator]  # the seconds that passed


def test_an_answer_alone_has_a_time() -> None:
    log = ClientLog()
    log.add("a text", 200, 0.5)
    log.add("a text", 503, 0.1)
    assert log.times == {"a text": [0.5]}
    assert log.statuses == {("a text", 200): 1, ("a text", 503): 1}


@pytest.mark.parametrize("words", [["--checkpoint", "nowhere"], ["--checkpoint", "nowhere", "--images", "nowhere"]])
def test_a_service_that_cannot_be_started_is_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["service", *words]) == EXIT_USAGE
    assert "expected an exported model at" in capsys.readouterr().err
