"""`python -m groundray.serve`: search a pool of images in a browser, with a trained model."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console

from groundray.cli import image_index
from groundray.cli.command import plain_console, run_command
from groundray.cli.workdir import open_paths
from groundray.config import is_model_uri
from groundray.image_search.http.address import check_port, is_loopback, listen_address
from groundray.image_search.http.auth_token import VARIABLE, find_token
from groundray.image_search.http.rate_limit import check_rate
from groundray.image_search.http.same_origin import check_hosts
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.runtime.ray_address import given_address
from groundray.storage.folder import Folder

HOST, PORT = "127.0.0.1", 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM and return the exit status: 0 it served, 1 it failed to start, 2 the model or the
    images cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM before it served."""
    return run_command(partial(_run, argv), interrupted=image_index.INTERRUPTED, failed=(RuntimeError,))


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options, console = build_parser().parse_args(argv), plain_console(optional=True)
    open_paths(errors.print, image_index.paths_of(options).values())
    options.asked = {"checkpoint": options.checkpoint, "index": options.index and str(Folder.at(options.index))}
    image_index.locate_model(options, errors)
    served = False
    try:
        with _service(options, console) as address:
            served = True
            console.print(f"search  {address}  (Ctrl-C stops it)")
            if options.open and _has_browser():
                webbrowser.open(address)
            threading.Event().wait()
    except KeyboardInterrupt:
        if not served:
            raise
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray serve", description="Search a pool of images in a browser, with a trained model."
    )
    image_index.add_options(parser)
    parser.add_argument(
        "--norms",
        metavar="DIR",
        help="folder with categories.csv and concreteness.csv, for the map of words (default: none)",
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen at (default: {HOST}, this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen at; 0: a free one (default: {PORT})")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which browsers may reach the service, besides localhost and IP addresses; *.example.org: all "
        "names below it; may be repeated (default: none)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=STALL_SECONDS,
        metavar="SECONDS",
        help="seconds until a stalled upload, and a request that is not answered, get status 408 "
        f"(default: {STALL_SECONDS:g})",
    )
    parser.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="processes that share the requests (default: 1)"
    )
    parser.add_argument(
        "--auth-token",
        metavar="TOKEN",
        help="token that every request must know; other users of this machine see it among its processes, unlike "
        f"--auth-token-file and {VARIABLE} of the environment (default: {VARIABLE}, or none)",
    )
    parser.add_argument("--auth-token-file", metavar="FILE", help="file that holds the token (default: none)")
    parser.add_argument(
        "--rate-limit",
        type=float,
        metavar="N",
        help="requests per second of one client's address, ten seconds of them at once; the next one gets status 429 "
        "(default: no limit)",
    )
    parser.add_argument(
        "--trust-proxy",
        action="store_true",
        help="take the client's address from X-Forwarded-For and its scheme from X-Forwarded-Proto: only behind one "
        "proxy, which sets them",
    )
    parser.add_argument(
        "--watch",
        type=float,
        default=0,
        metavar="SECONDS",
        help="look every so many seconds whether the model or the images have changed, and take them up "
        "(default: 0, never)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser, if there is one")
    return parser


@contextlib.contextmanager
def _service(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Serve inside the context; yields the address."""
    from groundray.runtime import cluster  # imports Ray, which --help does without

    token = _check_options(options)
    if token is None and not is_loopback(options.host):
        console.print(
            f"search  warning: whoever reaches {options.host} can search these images: --auth-token-file or "
            f"{VARIABLE} has the service ask for a token"
        )
    image_index.check_inputs(options, console)
    with cluster.connect(verbose=options.verbose):
        image_index.check_shared(options)
        towers, spec = image_index.open_index(options, console)
        image_index.open_positions(options, console, towers, spec.source)
        from groundray.runtime.serve import deployment  # imports Ray Serve, which `connect` has made quiet

        arguments = deployment.Arguments.model_validate(
            {
                **image_index.absolute_paths_of(options),
                **(options.asked if options.watch and is_model_uri(options.asked["checkpoint"]) else {}),  # it may move
                "replicas": options.replicas,
                "auth_token": token,
                "rate_limit": options.rate_limit,
                "trust_proxy": options.trust_proxy,
                "watch": options.watch,
                "rerank": options.rerank,
                "hosts": [*options.allow_host, *_names(options.host)],
            }
        )
        if running := deployment.running_at():
            console.print(f"search  Serve already runs on this cluster: its address and its timeout apply ({running})")
        with deployment.serving(arguments, options.host, options.port, options.timeout) as address:
            yield address


def _check_options(options: argparse.Namespace) -> str | None:
    """Return the token that the service asks for, after a check of the options, so that what cannot be used fails
    before Ray starts.

    Raises:
        ValueError: one of them cannot be used; the message begins with its name.
    """
    check_hosts(options.allow_host)
    check_port(options.port)
    check_rate(options.rate_limit)
    token = find_token(options.auth_token, options.auth_token_file, os.environ)
    if not (0 < options.timeout < math.inf):
        raise ValueError(f"--timeout: expected a positive number of seconds, got {options.timeout:g}")
    if not (0 <= options.watch < math.inf):
        raise ValueError(f"--watch: expected a number of seconds, or 0 for never, got {options.watch:g}")
    if options.replicas < 1:
        raise ValueError(f"--replicas: expected at least 1, got {options.replicas}")
    if given_address() is None:  # otherwise the cluster's machines listen, and may do so already
        listen_address(options.host, options.port)
    return token


def _names(host: str) -> list[str]:
    """Return the host to listen at if it is a name."""
    try:
        check_hosts([host])
    except ValueError:
        return []
    return [host]


def _has_browser() -> bool:
    """Return True if there is a screen for a browser: without one, some systems open a browser in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
