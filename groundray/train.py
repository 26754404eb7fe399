"""The `train` command: train the settings of a preset or YAML file, overridden by `--dotted.field VALUE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from groundray import config
from groundray.cli.arguments import add_help, requested_help
from groundray.cli.command import plain_console, run_command, write_output
from groundray.cli.workdir import go_home
from groundray.config import Settings, SettingsError

PROFILED_STEPS = 5  # of each stage, with --profile alone


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status: 0 trained, 1 training failed, 2 settings or data cannot be used, 130 or 143
    stopped by Ctrl-C or SIGTERM."""
    # `run_training` handles all other errors that are expected
    return run_command(partial(_run, argv), unusable=(SettingsError,))


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    parser = build_parser()
    options, overrides = parser.parse_known_args(argv)
    if text := requested_help(parser, options):
        write_output(text)
        return 0
    if options.profile is not None:
        overrides.append(f"--run.profile={options.profile}")
    settings = config.load(options.config, overrides)
    if options.print_config:
        write_output(settings.to_yaml())
        return 0
    go_home(errors.print)
    if options.dry_run:
        from groundray.cli.dry_run import print_preview
        from groundray.cli.start_model import with_start_model
        from groundray.storage.user_cache import user_cache
        from groundray.tracking.model_uris import DOWNLOADS

        # what a dry run downloads is not for the run's storage, to which it writes nothing
        settings = with_start_model(settings, errors.print, user_cache() / DOWNLOADS)
        return print_preview(settings, plain_console())
    return _train(settings, options, errors)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own options. The arguments that it does not know are settings."""
    parser = argparse.ArgumentParser(
        prog="groundray train",
        description="Train a grounded language model.\nThe same --run.storage and --run.name resume a run.",
        allow_abbrev=False,
        add_help=False,
    )
    presets = ", ".join(config.presets())
    parser.add_argument(
        "--config", default="demo", metavar="PRESET|FILE.yaml", help=f"{presets}, or a YAML file (default: demo)"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and exit")
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings and data, print what would run, and exit"
    )
    parser.add_argument("--verify", action="store_true", help="check every byte of the shards before training starts")
    parser.add_argument(
        "--profile",
        nargs="?",
        const=PROFILED_STEPS,
        metavar="N",
        help=f"trace N steps of each stage on worker 0 (without N: {PROFILED_STEPS}); sets run.profile",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own logs")
    add_help(parser)
    return parser


def _train(settings: Settings, options: argparse.Namespace, errors: Console) -> int:
    # imports torch, transformers and Ray, which --help does not need
    from groundray.cli.embedded_world import with_embedded_world
    from groundray.cli.progress import Reporter
    from groundray.cli.run_session import run_training
    from groundray.cli.start_model import with_start_model

    reporter = Reporter()
    settings = with_embedded_world(with_start_model(settings, errors.print), reporter.console)
    return run_training(settings, reporter, errors.print, verify=options.verify, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
