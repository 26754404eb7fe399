"""`python -m groundray.prepare`: write shards from a source's own files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from groundray.cli.command import plain_console, run_command
from groundray.cli.pool_changes import add, remove
from groundray.cli.preparation import add_options, prepare
from groundray.cli.workdir import go_home
from groundray.data.sources import SOURCES
from groundray.data.sources.images import Images


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a source and return the exit status: 0 prepared, 1 something was rejected and `--strict` was given, 2 the
    source cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; nothing was written")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    go_home(errors.print)
    source, console = options.source(options), plain_console()
    if isinstance(source, Images) and options.remove:
        remove(options.remove, options, console)
    elif isinstance(source, Images) and options.add:
        add(source, options, console)
    else:
        prepare(source, options, console)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="groundray prepare", description="Write shards from a data source.")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    for source in SOURCES:
        command = sources.add_parser(source.name, help=source.help, description=source.description)
        source.add_options(command)
        add_options(command, source)
        command.set_defaults(source=source)
    return parser


if __name__ == "__main__":
    sys.exit(main())
