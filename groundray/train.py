"""`python -m groundray.train`: train a preset or a YAML file of settings, with `--dotted.field VALUE` on top."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from groundray import config
from groundray.cli.workdir import go_home
from groundray.config import Settings, SettingsError

EXIT_USAGE = 2


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 trained, 1 a failure while training, 2 settings or data that cannot be used, 130 or 143 ended
    by Ctrl-C or SIGTERM."""
    options, overrides = _parser().parse_known_args(words)
    errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
    try:
        settings = config.load(options.config, overrides)
        if not options.print_config:
            go_home(errors.print)
    except SettingsError as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    if options.print_config:
        sys.stdout.write(settings.to_yaml())
        return 0
    if options.dry_run:
        return _dry_run(settings)
    return _train(settings, options, errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m groundray.train",
        description="Train a grounded language model. The same --run.storage and --run.name resume a run.",
        epilog=f"settings, over those of the preset or file:\n{config.help_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    presets = ", ".join(config.presets())
    parser.add_argument("--config", default="demo", metavar="PRESET|FILE.yaml", help=f"{presets}, or a YAML file")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen and stop")
    parser.add_argument("--verify", action="store_true", help="check every byte of the shards before training starts")
    parser.add_argument("--verbose", action="store_true", help="with Ray's own logs")
    return parser


def _dry_run(settings: Settings) -> int:
    from groundray.cli import reports
    from groundray.runtime.train import resources
    from groundray.training.preflight import preview

    console = Console(highlight=False, soft_wrap=True, markup=False)
    seen = preview(settings)
    wanted, problems = resources.preview(settings), list(seen.problems)
    console.print(f"run       {seen.folder}{' (goes on from its last checkpoint)' if seen.resumes else ''}")
    for stage in seen.stages:
        console.print(f"stage     {stage.name}")
        for line in stage.data:
            console.print(f"  {line}")
        for module, count in stage.trainable.items():
            console.print(f"  trains {module}: {count:,} parameters")
        console.print(f"  trains {sum(stage.trainable.values()):,} parameters in all")
    console.print(
        f"workers   {' or '.join(map(str, settings.worker_counts))}, {settings.chunks} chunks a global batch; "
        f"CPUs: {wanted.workers * wanted.worker_cpus:g} for workers of {wanted.cluster_cpus:g} "
        f"({wanted.where}); GPUs: {wanted.gpus} of {wanted.cluster_gpus:g}"
    )
    if settings.analysis.enabled and settings.analysis.norms:
        console.print(f"analysis  with the norms of {settings.analysis.norms}, to {seen.folder}/{reports.FOLDER}")
    if unusable := reports.problem(settings):
        problems.append(unusable)
    try:
        wanted.check()
    except ValueError as error:
        problems.append(str(error))
    for problem in problems:
        console.print(f"problem   {problem}")
    return EXIT_USAGE if problems else 0


def _train(settings: Settings, options: argparse.Namespace, errors: Console) -> int:
    # brings torch, transformers and Ray, which --help and bad settings do without
    from groundray.cli.progress import Reporter
    from groundray.cli.run_session import carry_out

    return carry_out(settings, Reporter(), errors.print, verify=options.verify, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
