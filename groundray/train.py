"""`python -m groundray.train`: train a preset or a YAML file of settings, with `--dotted.field VALUE` on top."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from groundray import config
from groundray.config import Settings, SettingsError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 trained, 1 a failure while training, 2 settings or data that cannot be used."""
    options, overrides = _parser().parse_known_args(words)
    errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
    try:
        settings = config.load(options.config, overrides)
    except SettingsError as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    if options.print_config:
        sys.stdout.write(settings.to_yaml())
        return 0
    if options.dry_run:
        return _dry_run(settings)
    return _train(settings, options.verbose, errors)


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
    parser.add_argument("--verbose", action="store_true", help="with Ray's own logs")
    return parser


def _dry_run(settings: Settings) -> int:
    from groundray.runtime import launch
    from groundray.training.preview import preview

    console = Console(highlight=False, soft_wrap=True, markup=False)
    seen = preview(settings)
    wanted, problems = launch.preview(settings), list(seen.problems)
    console.print(f"run       {seen.folder}{' (goes on from its last checkpoint)' if seen.resumes else ''}")
    for stage in seen.stages:
        console.print(f"stage     {stage.name}")
        for line in stage.data:
            console.print(f"  {line}")
        for module, count in stage.trainable.items():
            console.print(f"  trains {module}: {count:,} parameters")
        console.print(f"  trains {sum(stage.trainable.values()):,} parameters in all")
    console.print(
        f"workers   {settings.scaling.num_workers}, {settings.chunks} chunks a global batch; "
        f"CPUs: {wanted.workers * wanted.worker_cpus:g} for workers of {wanted.cluster_cpus:g} "
        f"({wanted.where}); GPUs: {wanted.gpus} of {wanted.cluster_gpus:g}"
    )
    try:
        wanted.check()
    except ValueError as error:
        problems.append(str(error))
    for problem in problems:
        console.print(f"problem   {problem}")
    return EXIT_USAGE if problems else 0


def _train(settings: Settings, verbose: bool, errors: Console) -> int:
    # these bring torch, transformers and Ray, which --help and bad settings do without
    from groundray.progress import Reporter
    from groundray.runtime import launch
    from groundray.tracking import Tracker
    from groundray.training import run
    from groundray.training.events import Event

    try:
        stages = run.check(settings)
        folder = run.claim(settings, stages)
    except (SettingsError, FileNotFoundError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE

    reporter = Reporter()
    fingerprints = {part: dataset.fingerprint for part, dataset in run.data_of(stages).items()}
    tracker = Tracker(settings, folder, fingerprints, errors.print) if settings.tracking.enabled else None

    def observe(event: Event) -> None:
        reporter.observe(event)
        if tracker:
            tracker.observe(event)

    workers = settings.scaling.num_workers
    reporter.console.print(f"run  {folder}, {f'starting {workers} workers on Ray' if workers else 'in this process'}")
    result = None
    try:
        result = launch.train(settings, observe, verbose)
    except (launch.RunFailed, ValueError, OSError) as error:
        reporter.close()
        errors.print(f"error: {error}")
        errors.print(f"what was trained is kept in {folder}; the same command goes on from there")
        return EXIT_FAILED
    except KeyboardInterrupt:
        reporter.close()
        errors.print(f"interrupted; what was trained is kept in {folder}, the same command goes on from there")
        return EXIT_INTERRUPTED
    finally:
        if tracker:
            tracker.close(result)
    reporter.console.print(f"result  {folder}/{run.RESULT}\nmodel   {folder}/{run.MODEL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
