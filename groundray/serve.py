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
from groundray.image_search.http.address import check_port, listen_address
from groundray.image_search.http.same_origin import check_hosts
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.runtime.ray_address import given_address

HOST, PORT = "127.0.0.1", 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM and return the exit status: 0 it served, 1 it failed to start, 2 the model or the
    images cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM before it served."""
    return run_command(partial(_run, argv), interrupted=image_index.INTERRUPTED, failed=(RuntimeError,))


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options, console = build_parser().parse_args(argv), plain_console(optional=True)
    open_paths(errors.print, image_index.paths_of(options).values())
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
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser, if there is one")
    return parser


@contextlib.contextmanager
def _service(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Serve inside the context; yields the address."""
    from groundray.runtime import cluster  # imports Ray, which --help does without

    _check_options(options)
    image_index.check_inputs(options, console)
    with cluster.connect(verbose=options.verbose):
        image_index.check_shared(options)
        image_index.open_index(options, console)
        from groundray.runtime.serve import deployment  # imports Ray Serve, which `connect` has made quiet

        arguments = deployment.Arguments.model_validate(
            {
                **image_index.absolute_paths_of(options),
                "replicas": options.replicas,
                "hosts": [*options.allow_host, *_names(options.host)],
            }
        )
        if running := deployment.running_at():
            console.print(f"search  Serve already runs on this cluster: its address and its timeout apply ({running})")
        with deployment.serving(arguments, options.host, options.port, options.timeout) as address:
            yield address


def _check_options(options: argparse.Namespace) -> None:
    """Check the options, so that what cannot be used fails before Ray starts.

    Raises:
        ValueError: one of them cannot be used; the message begins with its name.
    """
    check_hosts(options.allow_host)
    check_port(options.port)
    if not (0 < options.timeout < math.inf):
        raise ValueError(f"--timeout: expected a positive number of seconds, got {options.timeout:g}")
    if options.replicas < 1:
        raise ValueError(f"--replicas: expected at least 1, got {options.replicas}")
    if given_address() is None:  # otherwise the cluster's machines listen, and may do so already
        listen_address(options.host, options.port)


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
