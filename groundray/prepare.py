"""`python -m groundray.prepare`: write shards from a source's own files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from groundray.cli.command import plain_console, run_command
from groundray.cli.preparation import prepare
from groundray.cli.workdir import go_home
from groundray.data.schema import ROW_GROUP_BYTES
from groundray.data.sources import SOURCES


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a source and return the exit status: 0 prepared, 1 something was rejected and `--strict` was given, 2 the
    source cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; nothing was written")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    go_home(errors.print)
    prepare(options.source(options), options, plain_console())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="groundray prepare", description="Write shards from a data source.")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    for source in SOURCES:
        command = sources.add_parser(source.name, help=source.help, description=source.description)
        source.add_options(command)
        command.add_argument("--out", required=True, metavar="DIR", help="folder or URL to write the shards to")
        command.add_argument("--strict", action="store_true", help="write nothing if anything has to be rejected")
        command.add_argument("--overwrite", action="store_true", help="replace another source's shards in --out")
        command.add_argument("--verbose", action="store_true", help="show Ray's own logs, where RAY_ADDRESS is set")
        command.add_argument("--row-group-mb", type=float, default=ROW_GROUP_BYTES / 2**20, help=argparse.SUPPRESS)
        command.set_defaults(source=source)
    return parser


if __name__ == "__main__":
    sys.exit(main())
