"""`python -m groundray.sweep`: many runs that differ in a few settings, and which of them is best."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from groundray import config
from groundray.cli.progress import table_console
from groundray.cli.workdir import go_home
from groundray.config import SettingsError

if TYPE_CHECKING:
    from groundray.runtime.tune.results import Trial
    from groundray.runtime.tune.spec import Sweep

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
ALIAS = "best"  # of the registered model


def main(
    words: Sequence[str] | None = None,
    about: str = "Sweep some settings of a run: each trial is a run of its own.",
    space: Sequence[str] = (),
    metric: str | None = None,
    name: str = "sweep",
    short: Sequence[str] = (),
) -> int:
    """The exit status: 0 all trials ended, 1 none came to a value, 2 a sweep that cannot be, 130 or 143 ended by Ctrl-C
    or SIGTERM.

    Args:
        words: of the command line.
        about, space, metric, name: what a script sweeps where its command line says nothing else.
        short: settings that make shorter runs of the demo's, where the command line names no --config.
    """
    options, overrides = _parser(about, space, metric, short).parse_known_args(words)
    console = table_console(soft_wrap=True)
    errors = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)
    if options.config is None:
        options.config, overrides = "demo", with_defaults(overrides, short)
    # one worker a trial: many trials at once use a cluster better
    overrides = with_defaults(overrides, ["--scaling.num_workers=1", f"--run.name={name}"])
    try:
        sweep = _sweep(options, overrides)
        options.file = config.find(options.config).absolute()
        go_home(errors.print)
        sweep.check()
        status = _carry_out(sweep, options, console, errors)
    except (SettingsError, OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:  # before there was anything to write down
        status = EXIT_INTERRUPTED
    if status >= EXIT_INTERRUPTED:
        errors.print("interrupted: the same command with --resume goes on")
    return status


def with_defaults(overrides: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Words of a command line for settings, with others (`--any.setting=VALUE`) for those that it does not name."""
    given = {word.partition("=")[0] for word in overrides}
    return [*(word for word in defaults if word.partition("=")[0] not in given), *overrides]


def _parser(about: str, space: Sequence[str], metric: str | None, short: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{about} The same command with --resume goes on.",
        epilog="any setting of a run can be given too, for all trials: see python -m groundray.train --help",
        allow_abbrev=False,
    )
    presets = ", ".join(config.presets())
    parser.add_argument(
        "--config",
        metavar="PRESET|FILE.yaml",
        help=f"{presets}, or a YAML file (default: {' '.join(['demo', *short])})",
    )
    parser.add_argument(
        "--space",
        action="append",
        metavar="SETTING=SPACE",
        help="choice:A,B,... or uniform:LOW:HIGH or loguniform:LOW:HIGH; once for each swept setting"
        + (f" (default: {' '.join(space)})" if space else ""),
        required=not space,
    )
    parser.add_argument(
        "--metric",
        default=metric,
        required=metric is None,
        metavar="STAGE/METRIC",
        help="validation metric by which trials are compared; the stage is the last that they train"
        + (f" (default: {metric})" if metric else ""),
    )
    parser.add_argument("--order", choices=("min", "max"), help="which is better (default: less of a loss or rank)")
    parser.add_argument(
        "--search",
        choices=("grid", "random", "tpe"),
        help="all combinations, points drawn at random, or by Optuna's TPE (default: grid, or random with ranges)",
    )
    parser.add_argument("--num-samples", type=int, default=10, metavar="N", help="points to draw (default: 10)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trials at each point (default: 1)")
    parser.add_argument(
        "--early-stopping", choices=("asha", "none"), default="asha", help="of trials that fall behind (default: asha)"
    )
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once (default: as many as fit)")
    parser.add_argument("--resume", action="store_true", help="go on, where the sweep was interrupted")
    parser.add_argument(
        "--register", metavar="NAME", nargs="?", const="groundray", help="the best model as models:/NAME@best in MLflow"
    )
    parser.add_argument("--verbose", action="store_true", help="with Ray's own logs")
    parser.set_defaults(default_space=space)
    return parser


def _sweep(options: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    from groundray.runtime.tune.search_space import parse_spaces
    from groundray.runtime.tune.spec import Metric, Sweep

    for name in ("num_samples", "seeds", "max_concurrent"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise SettingsError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    settings = config.load(options.config, overrides)
    if options.register and not settings.tracking.enabled:
        raise SettingsError("--register: expected tracking.enabled true, for a model is registered in MLflow")
    swept = parse_spaces(options.space or options.default_space, settings)
    return Sweep(
        settings=settings,
        spaces=swept,
        metric=Metric.parse(options.metric, options.order),
        search=options.search or ("grid" if all(space.kind == "choice" for space in swept) else "random"),
        num_samples=options.num_samples,
        seeds=options.seeds,
        early_stopping=options.early_stopping == "asha",
        max_concurrent=options.max_concurrent,
    )


def _carry_out(sweep: Sweep, options: argparse.Namespace, console: Console, errors: Console) -> int:
    from groundray.cli.progress import Reporter
    from groundray.cli.run_session import EXIT_SIGNAL, Signals, carry_out
    from groundray.runtime.tune import trials as runtime
    from groundray.runtime.tune.spec import PLOT, RESULTS, SHARED, TABLE, TRIALS
    from groundray.tracking import SweepLog
    from groundray.training import progression

    began, reporter, folder, settings = time.monotonic(), Reporter(console), sweep.folder, sweep.settings
    with runtime.connected(sweep, options.verbose, console.print) as concurrent:
        sweep.claim(options.resume)
        console.print(f"sweep  {folder}, {concurrent} trials at once")
        log = SweepLog(settings, folder, sweep.definition(), errors.print) if settings.tracking.enabled else None
        parent = log.run_id if log else None
        before = sweep.shared_settings()
        if before and not (folder / SHARED).exists(progression.RESULT):
            console.print(f"{', '.join(sweep.shared_stages)}  trained once, for all trials")
            signals = Signals()
            if status := carry_out(
                before, reporter, errors.print, verbose=options.verbose, parent=parent, signals=signals
            ):
                return status
            if signals.received:  # too late for that run
                return EXIT_SIGNAL + signals.received[0]
        runtime.make_shared_features(sweep, reporter.observe)
        trials, stopped = runtime.run_sweep(sweep, concurrent, parent, options.resume, console.print)

    winner = _show(sweep, options, trials, console)
    if log:
        best = {str(sweep.metric): winner.value} if winner and winner.value is not None else {}
        log.close(best, [TABLE, RESULTS, PLOT], finished=not stopped)
        if winner and options.register and not stopped:
            version = log.register(folder / TRIALS / winner.name, options.register, ALIAS)
            if version:
                console.print(f"model   models:/{options.register}@{ALIAS} is version {version}")
    console.print(f"table, picture and trials  {folder}   {(time.monotonic() - began) / 60:.1f} minutes")
    if stopped:
        return EXIT_SIGNAL + stopped
    return 0 if winner else EXIT_FAILED


def _show(sweep: Sweep, options: argparse.Namespace, trials: Sequence[Trial], console: Console) -> Trial | None:
    """The best trial, after the table has been printed, and written with the picture into the sweep's folder."""
    from groundray.runtime.tune import plot, results
    from groundray.runtime.tune.spec import PLOT, RESULTS, TABLE, describe_values

    head, lines = results.table(trials, sweep.metric)
    table = Table(title=f"{sweep.metric}, best first")
    for column in head:  # a setting's own name, below its section's
        table.add_column(column.replace("/", "/\n").replace(".", ".\n"), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for trial in trials:
        if trial.error:
            console.print(f"{trial.name}  {describe_values(trial.all_values)}  {trial.error}")
    text = io.StringIO()
    csv.writer(text).writerows([head, *lines])
    winner = results.best_trial(trials, sweep.metric)
    sweep.folder.write_bytes(TABLE, text.getvalue().encode())
    sweep.folder.write_json(RESULTS, [asdict(trial) for trial in trials])
    with tempfile.TemporaryDirectory() as local:
        plot.draw(Path(local) / PLOT, sweep.settings.run.name, trials, sweep.spaces, sweep.metric)
        sweep.folder.write_bytes(PLOT, (Path(local) / PLOT).read_bytes())
    if winner:
        console.print(f"best    {winner.name}  {describe_values(winner.all_values)}  {sweep.metric} {winner.value:.4g}")
        console.print(
            f"        python -m groundray.train {shlex.join(command(sweep, options.config, options.file, winner))}"
        )
    return winner


def command(sweep: Sweep, preset: str, file: Path, trial: Trial) -> list[str]:
    """Words for `groundray.train` that train a trial again, to the same weights.

    Args:
        preset: as it was typed.
        file: of its settings.
    """
    name = f"{sweep.settings.run.name}-best"
    given = sweep.settings
    own = {"run.storage": given.run.storage, "run.name": name, "features.folder": given.features.folder}
    settings = config.changed(sweep.settings_of(trial.all_values, name), own)
    return ["--config", preset, *config.to_cli_args(settings, config.load(file))]


if __name__ == "__main__":
    sys.exit(main())
