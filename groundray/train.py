"""`python -m groundray.train`: train a preset or a YAML file of settings, with `--dotted.field VALUE` on top."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rich.console import Console

from groundray import config
from groundray.config import Settings, SettingsError

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_SIGNAL = 128  # and its number


@dataclass
class Signals:
    """Ctrl-C and SIGTERM: the first lets a run that trains write a checkpoint and end, any other ends it as it is."""

    training: bool = False
    received: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Meanwhile, signals come here."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def notice(self) -> str:
        return "stopped" if self.received else ""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if not self.training or len(self.received) > 1:
            raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 trained, 1 a failure while training, 2 settings or data that cannot be used, 130 or 143 ended
    by Ctrl-C or SIGTERM."""
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
    from groundray.runtime import resources
    from groundray.training.preview import preview

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
    try:
        wanted.check()
    except ValueError as error:
        problems.append(str(error))
    for problem in problems:
        console.print(f"problem   {problem}")
    return EXIT_USAGE if problems else 0


def _train(settings: Settings, options: argparse.Namespace, errors: Console) -> int:
    # these bring torch, transformers and Ray, which --help and bad settings do without
    from groundray.progress import Reporter
    from groundray.runtime import launch
    from groundray.tracking import Tracker
    from groundray.training import run
    from groundray.training.events import Attempted, Event
    from groundray.training.worker import Stopped

    reporter = Reporter()
    try:
        stages = run.check(settings)
        if options.verify:
            run.verify(stages, reporter.console.print)
        folder = run.claim(settings, stages)
    except (SettingsError, OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE

    fingerprints = {part: dataset.fingerprint for part, dataset in run.data_of(stages).items()}
    tracker = Tracker(settings, folder, fingerprints, errors.print) if settings.tracking.enabled else None
    signals = Signals()

    def observe(event: Event) -> None:
        signals.training |= isinstance(event, Attempted)
        reporter.observe(event)
        if tracker:
            tracker.observe(event)

    workers = " to ".join(map(str, dict.fromkeys((settings.scaling.least, settings.scaling.most))))
    where = f"starting {workers} workers on Ray" if settings.scaling.most else "in this process"
    reporter.console.print(f"run  {folder}, {where}")
    result: dict[str, Any] | None = None
    ended: Exception | None = None
    with signals.heard():
        try:
            result = launch.train(settings, observe, options.verbose, signals.notice)
        except (launch.RunFailed, Stopped, ValueError, ArithmeticError, OSError, RuntimeError) as error:
            ended = error
        except KeyboardInterrupt:
            pass
        finally:
            reporter.close()
            if tracker:
                tracker.close(result, "FINISHED" if result else "KILLED" if signals.received else "FAILED")
    if result:
        reporter.console.print(f"result  {folder}/{run.RESULT}\nmodel   {folder}/{run.MODEL}")
        return 0
    if signals.received:
        kept = "a checkpoint is written" if isinstance(ended, Stopped) else "what was trained is kept"
        errors.print(f"stopped: {kept} in {folder}; the same command goes on from there")
        return EXIT_SIGNAL + signals.received[0]
    errors.print(f"error: {ended}")
    errors.print(f"what was trained is kept in {folder}; the same command goes on from there")
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
