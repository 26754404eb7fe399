"""`python -m groundray.bench`: measure the time and memory of groundray, against other ways to do the same."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import joblib
from rich.console import Console

from groundray.cli.command import CHECKPOINT, CommandFailed, run_command, table_console, write_output
from groundray.cli.workdir import go_home, write_json

if TYPE_CHECKING:
    from groundray.benchmarks.measure import Report

STDOUT = "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and return the exit status: 0 measured, 1 contenders compute different things, 2 the options or the data
    cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; nothing was written")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.measure not in (_measure_step, _measure_update):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.settings = rest
    from groundray.benchmarks.published_losses import Disagreement  # imports torch, which --help does without

    measure: Callable[[argparse.Namespace, Callable[[str], None]], Report] = options.measure
    go_home(errors.print)
    try:
        report = measure(options, errors.print)
    except Disagreement as error:
        raise CommandFailed(str(error)) from error
    if options.json == STDOUT:
        write_output(f"{json.dumps(report.as_json())}\n")
        return 0
    table_console().print(report.table())
    write_json(options.json, report.as_json())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray bench",
        description="Measure the time and memory of groundray, against other ways to do the same.",
    )
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")

    loss = benchmarks.add_parser("loss", help="the grounding loss: forward, backward, memory")
    _add_numbers(loss, "--batch", [32, 180, 512], "batch sizes")
    _add_numbers(loss, "--tokens", [32, 14], "mean numbers of valid tokens, of 32")
    loss.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="contenders to compare with groundray (default: all)"
    )
    _add_device(loss)
    loss.add_argument(
        "--precision", choices=["float32", "tf32", "bf16"], default="float32", help="number format (default: float32)"
    )
    loss.set_defaults(measure=_measure_loss)

    relation = benchmarks.add_parser("relation", help="the relation losses: forward, backward, memory")
    _add_numbers(relation, "--triplets", [100, 500], "triplets in a batch")
    _add_number(relation, "--predicates", 100, "predicates to classify")
    relation.set_defaults(measure=_measure_relation)

    streams = benchmarks.add_parser("input", help="shards to batches: samples a second, time to the first batch")
    _add_data(streams)
    _add_number(streams, "--batch-size", 64, "samples in a batch")
    streams.add_argument(
        "--samples", type=_positive, metavar="N", help="samples to stream each time (default: two epochs)"
    )
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
    step.set_defaults(measure=_measure_step)

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
    _add_numbers(alone, "--batch", [180], "batch sizes")
    _add_device(alone)
    alone.add_argument(
        "--precision",
        nargs="+",
        choices=["float32", "tf32", "bf16"],
        default=["bf16"],
        help="number formats (default: bf16)",
    )
    alone.add_argument(
        "--profile", metavar="DIR", help="folder or URL for a table of the operators of a step (default: none)"
    )
    alone.set_defaults(measure=_measure_update)

    search = benchmarks.add_parser("search", help="nearest of many vectors, against FAISS: time and recall")
    _add_number(search, "--vectors", 41_620, "vectors in the pool")
    _add_number(search, "--width", 768, "width of a vector")
    _add_number(search, "--threads", 1, "threads of each contender")
    search.set_defaults(measure=_measure_search)

    service = benchmarks.add_parser("service", help="search over HTTP: one client, then many at once")
    _add_path(service, "--checkpoint", "DIR", "runs/demo/model", CHECKPOINT)
    _add_path(service, "--images", "SHARDS", "data/scenes/captions/val", "shards with images")
    _add_number(service, "--clients", 50, "clients at once")
    _add_number(service, "--replicas", 1, "processes that share the requests")
    _add_number(service, "--seconds", 60, "seconds for which the clients ask")
    service.set_defaults(measure=_measure_service)

    for benchmark in (loss, relation, streams, step, alone, search, service):
        benchmark.add_argument(
            "--json", metavar="FILE", help="path or URL to write every measurement to; - for stdout (default: none)"
        )
    for benchmark, rounds in ((loss, 5), (relation, 5), (streams, 5), (step, 5), (alone, 5), (search, 300)):
        _add_number(benchmark, "--repeats", rounds, "timed rounds")
        _add_number(benchmark, "--max-seconds", 120, "seconds after which no round starts")
    return parser


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, what: str) -> None:
    parser.add_argument(flag, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")


def _add_numbers(parser: argparse.ArgumentParser, flag: str, default: list[int], what: str) -> None:
    shown = " ".join(map(str, default))
    parser.add_argument(
        flag, type=_positive, nargs="+", default=default, metavar="N", help=f"{what} (default: {shown})"
    )


def _add_path(parser: argparse.ArgumentParser, flag: str, metavar: str, default: str, what: str) -> None:
    parser.add_argument(flag, default=default, metavar=metavar, help=f"{what} (default: {default})")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="SHARDS", help="folder of caption shards (default: drawn photos)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cuda if there is one)")


def _natural(word: str) -> int:
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {number}")
    return number


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _measure_loss(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import contrastive_loss

    return contrastive_loss.measure(
        options.batch,
        options.tokens,
        options.only,
        options.device,
        options.precision,
        options.repeats,
        options.max_seconds,
        note,
    )


def _measure_relation(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import relation_step

    return relation_step.measure(options.triplets, options.predicates, options.repeats, options.max_seconds, note)


def _measure_input(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import input_pipeline

    return input_pipeline.measure(
        options.data, options.batch_size, options.samples, options.cpus, options.repeats, options.max_seconds, note
    )


def _measure_step(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import training_step

    words = [*options.settings, *([f"--grounding.precision={options.precision}"] if options.precision else [])]
    return training_step.measure(
        options.config,
        words,
        options.data,
        options.workers,
        options.device,
        options.profile,
        options.repeats,
        options.max_seconds,
        note,
    )


def _measure_update(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import grounding_update

    return grounding_update.measure(
        options.config,
        options.settings,
        options.batch,
        options.precision,
        options.device,
        options.profile,
        options.repeats,
        options.max_seconds,
        note,
    )


def _measure_search(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import vector_search

    return vector_search.measure(
        options.vectors, options.width, options.threads, options.repeats, options.max_seconds, note
    )


def _measure_service(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import search_service
    from groundray.image_search.index import FOLDER
    from groundray.storage.user_cache import user_cache
    from groundray.tracking.model_uris import locate

    located = locate(options.checkpoint, note)
    index = str(user_cache() / FOLDER) if located.model else None
    return search_service.measure(
        located.place, options.images, index, options.clients, options.replicas, options.seconds, note
    )


if __name__ == "__main__":
    sys.exit(main())
