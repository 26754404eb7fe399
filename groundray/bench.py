"""`python -m groundray.bench`: measure the time and memory of groundray, against other ways to do the same."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import joblib
from rich.console import Console

from groundray.benchmarks.session import FEWEST_ROUNDS, Position, Session
from groundray.cli.command import CHECKPOINT, EXIT_FAILED, CommandFailed, run_command, table_console, write_output
from groundray.cli.progress import Progress
from groundray.cli.workdir import go_home, write_json

if TYPE_CHECKING:
    from groundray.benchmarks.measure import Report

STDOUT = "-"
LIMIT_SECONDS = 165.0  # of 3 minutes; the end of a cluster takes some
ABOUT = (
    "Measure the time and memory of groundray, against other ways to do the same. Each benchmark takes at most about 3 "
    "minutes: it names the rows that do not fit, and --full measures every row. Sizes, --repeats, --max-seconds and "
    "--seconds that are given are measured whole too. Ctrl-C prints what has been measured."
)


class Size(NamedTuple):
    """The default of a size or number of repetitions: with --full, and the one where time is limited, if it differs."""

    full: Any
    short: Any = None


def main(argv: Sequence[str] | None = None, clock: Callable[[], float] = time.perf_counter) -> int:
    """Measure and return the exit status: 0 measured, 1 a contender fails or computes something else, 2 the options or
    the data cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM, after what was measured until then is printed."""
    return run_command(partial(_run, argv, clock, clock()), interrupted="interrupted; nothing was measured")


def _run(argv: Sequence[str] | None, clock: Callable[[], float], started: float, errors: Console) -> int:
    options = parse(argv)
    measure: Callable[[argparse.Namespace, Session], Report] = options.measure
    go_home(errors.print)
    with Progress(errors, live=False) as progress:  # a thread that draws would take time from what is measured
        session = Session(
            options.repeats,
            options.max_seconds,
            limit=LIMIT_SECONDS if options.limited else None,
            fewest_rounds=options.fewest_rounds,
            show=partial(_show, progress, options.name),
            clock=clock,
            started=started,
        )
        session.note("starting")
        from groundray.benchmarks.published_losses import Disagreement  # imports torch, which takes seconds

        try:
            report = measure(options, session)
        except Disagreement as error:
            raise CommandFailed(str(error)) from error
    found = report.as_json() | session.as_json()
    if options.json == STDOUT:
        write_output(f"{json.dumps(found)}\n")
    else:
        console = table_console()
        if report.rows:
            console.print(report.table())
        for line in session.remarks():
            console.print(line)
        write_json(options.json, found)
    if session.stopped:
        raise KeyboardInterrupt("interrupted; what had been measured is above")
    return EXIT_FAILED if session.has_failures else 0


def _show(progress: Progress, bench: str, position: Position) -> None:
    """Show what is measured, of how many runs, the time passed, and the time left."""
    passed = f"{int(position.passed) // 60}:{int(position.passed) % 60:02d} passed"
    progress.update(
        bench,
        position.done,
        position.total or None,
        detail=f"{position.what}  {passed}",
        left=position.left,
        due=position.new,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with `limited`: whether time is limited. It is unless --full, a size or a number of
    repetitions is given."""
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.measure not in (_measure_step, _measure_update):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.settings = rest
    sizes: dict[str, Size] = options.sizes
    options.limited = not options.full and all(getattr(options, name) is None for name in sizes)
    for name, size in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, size.short if options.limited and size.short else size.full)
    return options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray bench",
        description=ABOUT,
    )
    parser.set_defaults(repeats=1, max_seconds=math.inf, fewest_rounds=FEWEST_ROUNDS)
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")

    loss = benchmarks.add_parser("loss", help="the grounding loss: forward, backward, memory")
    _add_sizes(loss, "--batch", [32, 180, 512], "batch sizes")
    _add_sizes(loss, "--tokens", [32, 14], "mean numbers of valid tokens, of 32")
    loss.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="contenders to compare with groundray (default: all)"
    )
    _add_device(loss)
    loss.add_argument(
        "--precision", choices=["float32", "tf32", "bf16"], default="float32", help="number format (default: float32)"
    )
    loss.set_defaults(measure=_measure_loss)

    relation = benchmarks.add_parser("relation", help="the relation losses: forward, backward, memory")
    _add_sizes(relation, "--triplets", [100, 500], "triplets in a batch")
    _add_size(relation, "--predicates", 100, "predicates to classify")
    relation.set_defaults(measure=_measure_relation)

    streams = benchmarks.add_parser("input", help="shards to batches: samples a second, time to the first batch")
    _add_data(streams)
    _add_size(streams, "--batch-size", 64, "samples in a batch")
    _add_size(streams, "--samples", None, "samples to stream each time", shown="two epochs")
    streams.add_argument(
        "--cpus",
        type=_positive,
        default=joblib.cpu_count(),
        metavar="N",
        help="cores to read and decode on (default: all of this machine)",
    )
    streams.set_defaults(measure=_measure_input)

    step = benchmarks.add_parser(
        "step",
        help="a grounding step: with trunk features or images, with Ray or without",
        epilog="Further --dotted.field VALUE override the settings of --config.",
    )
    step.add_argument(
        "--config",
        default="photos",
        metavar="PRESET|FILE.yaml",
        help="preset or YAML file of settings with a frozen trunk (default: photos)",
    )
    _add_data(step)
    step.add_argument(
        "--workers",
        type=_natural,
        default=1,
        metavar="N",
        help="workers of the contenders that use Ray; 0 leaves those out, and needs no Ray (default: 1)",
    )
    _add_device(step)
    step.add_argument(
        "--precision", choices=["float32", "tf32", "bf16"], help="number format (default: that of --config)"
    )
    step.add_argument(
        "--profile", metavar="DIR", help="folder or URL for a torch profiler trace of each contender (default: none)"
    )
    step.set_defaults(measure=_measure_step, fewest_rounds=1)

    alone = benchmarks.add_parser(
        "update",
        help="a grounding step alone, on random trunk features: no data, no Ray",
        epilog="Further --dotted.field VALUE override the settings of --config.",
    )
    alone.add_argument(
        "--config",
        default="paper",
        metavar="PRESET|FILE.yaml",
        help="preset or YAML file of settings with a frozen trunk (default: paper)",
    )
    _add_sizes(alone, "--batch", [180], "batch sizes", short=[32, 180])
    _add_device(alone)
    alone.add_argument(
        "--precision",
        nargs="+",
        choices=["float32", "tf32", "bf16"],
        help="number formats (default: bf16 on a GPU, float32 on a CPU)",
    )
    alone.add_argument(
        "--profile", metavar="DIR", help="folder or URL for a table of the operators of a step (default: none)"
    )
    alone.set_defaults(measure=_measure_update, fewest_rounds=1)

    search = benchmarks.add_parser("search", help="nearest of many vectors, against FAISS: time and recall")
    _add_size(search, "--vectors", 41_620, "vectors in the pool")
    _add_size(search, "--width", 768, "width of a vector")
    _add_number(search, "--threads", 1, "threads of each contender")
    search.set_defaults(measure=_measure_search)

    service = benchmarks.add_parser("service", help="search over HTTP: one client, then many at once")
    _add_path(service, "--checkpoint", "DIR", "runs/demo/model", CHECKPOINT)
    _add_path(service, "--images", "SHARDS", "data/scenes/captions/val", "shards with images")
    _add_size(service, "--clients", 50, "clients at once")
    _add_number(service, "--replicas", 1, "processes that share the requests")
    _add_size(service, "--seconds", 60, "seconds for which the clients ask")
    service.set_defaults(measure=_measure_service)

    for name, benchmark in benchmarks.choices.items():
        benchmark.add_argument(
            "--json", metavar="FILE", help="path or URL to write every measurement to; - for stdout (default: none)"
        )
        benchmark.add_argument(
            "--full",
            action="store_true",
            help="measure every row, however long it takes (default: those that fit into about 3 minutes, or all of "
            "the sizes and repetitions that are given)",
        )
        benchmark.set_defaults(name=name)
    for benchmark, rounds in ((loss, 5), (relation, 5), (streams, 5), (step, 5), (alone, 5), (search, 300)):
        _add_size(benchmark, "--repeats", rounds, "timed rounds")
        _add_size(benchmark, "--max-seconds", 120, "seconds after which no round starts")
    return parser


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, what: str) -> None:
    parser.add_argument(flag, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")


def _add_size(
    parser: argparse.ArgumentParser, flag: str, default: int | None, what: str, shown: str | None = None
) -> None:
    """Add a size or a number of repetitions: if one is given, time is not limited."""
    added = parser.add_argument(flag, type=_positive, metavar="N", help=f"{what} (default: {shown or default})")
    _keep(parser, added.dest, Size(default))


def _add_sizes(
    parser: argparse.ArgumentParser, flag: str, default: list[int], what: str, short: list[int] | None = None
) -> None:
    """Add a list of sizes, as `_add_size` does.

    Args:
        short: the default where time is limited, if it is another.
    """
    shown = " ".join(map(str, short or default)) + (f"; --full: {' '.join(map(str, default))}" if short else "")
    added = parser.add_argument(flag, type=_positive, nargs="+", metavar="N", help=f"{what} (default: {shown})")
    _keep(parser, added.dest, Size(default, short))


def _keep(parser: argparse.ArgumentParser, name: str, size: Size) -> None:
    parser.set_defaults(sizes={**(parser.get_default("sizes") or {}), name: size})


def _add_path(parser: argparse.ArgumentParser, flag: str, metavar: str, default: str, what: str) -> None:
    parser.add_argument(flag, default=default, metavar=metavar, help=f"{what} (default: {default})")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="SHARDS", help="folder of caption shards (default: drawn photos)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cuda if there is one)")


def _natural(word: str, least: int = 0) -> int:
    try:
        number = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {word!r}") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"expected at least {least}, got {number}")
    return number


def _positive(word: str) -> int:
    return _natural(word, least=1)


def _measure_loss(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import contrastive_loss

    return contrastive_loss.measure(
        options.batch, options.tokens, options.only, options.device, options.precision, session
    )


def _measure_relation(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import relation_step

    return relation_step.measure(options.triplets, options.predicates, session)


def _measure_input(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import input_pipeline

    return input_pipeline.measure(options.data, options.batch_size, options.samples, options.cpus, session)


def _measure_step(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import training_step

    words = [*options.settings, *([f"--grounding.precision={options.precision}"] if options.precision else [])]
    return training_step.measure(
        options.config, words, options.data, options.workers, options.device, options.profile, session
    )


def _measure_update(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import grounding_update

    return grounding_update.measure(
        options.config, options.settings, options.batch, options.precision, options.device, options.profile, session
    )


def _measure_search(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import vector_search

    return vector_search.measure(options.vectors, options.width, options.threads, session)


def _measure_service(options: argparse.Namespace, session: Session) -> Report:
    from groundray.benchmarks import search_service
    from groundray.image_search.index import FOLDER
    from groundray.storage.user_cache import user_cache
    from groundray.tracking.model_uris import locate

    located = locate(options.checkpoint, session.note)
    index = str(user_cache() / FOLDER) if located.model else None
    return search_service.measure(
        located.place, options.images, index, options.clients, options.replicas, options.seconds, session
    )


if __name__ == "__main__":
    sys.exit(main())
