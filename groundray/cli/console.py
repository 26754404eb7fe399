"""The console command: `groundray NAME ...` is the same as `python -m groundray.NAME ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from rich.console import Console

from groundray.cli.command import EXIT_USAGE, run_command, write_output
from groundray.cli.completion import SHELLS, script
from groundray.config import did_you_mean

COMMANDS = {
    "prepare": "write shards from a data source",
    "train": "train a model, or resume its training",
    "sweep": "train many models that differ in a few settings, and compare them",
    "analyse": "measure what a trained model has learned",
    "baseline": "make word vectors of other kinds of evidence, to compare a model with",
    "search": "search images with a text, an image, or a mix of both",
    "serve": "serve image search in a browser",
    "clean": "show what takes disk space, and delete what may go",
    "push": "upload a trained model to the Hugging Face hub",
    "bench": "measure time and memory against alternatives",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status, or 2 if there is no such command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return _module(argv[0]).main(argv[1:])
    return run_command(partial(_run, argv))


def _run(argv: Sequence[str], errors: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="groundray",
        usage="groundray COMMAND ...\n       groundray [--help] [--print-completion SHELL]",
        description="Train, sweep and understand visually grounded language models on Ray.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<9}{about}" for name, about in COMMANDS.items())
        + "\n\ngroundray COMMAND --help shows the options of a command\n"
        + 'eval "$(groundray --print-completion bash)" turns on completion in this shell',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a completion script for {' or '.join(SHELLS)}, and exit",
    )
    if argv and not argv[0].startswith("-"):
        errors.print(
            f"error: expected a command ({', '.join(COMMANDS)}), got {argv[0]!r}" + did_you_mean(argv[0], COMMANDS)
        )
        return EXIT_USAGE
    options = parser.parse_args(argv)
    if options.print_completion:
        parsers = {name: _module(name).build_parser() for name in COMMANDS}
        write_output(script(parser, parsers, COMMANDS, options.print_completion))
        return 0
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _module(name: str) -> ModuleType:
    """Import a command. Importing only the one that is run keeps the start fast."""
    return importlib.import_module(f"groundray.{name}")
