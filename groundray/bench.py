"""`python -m groundray.bench`: time and memory of groundray, against other ways to do the same."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
from rich.console import Console

from groundray.cli.progress import table_console
from groundray.cli.workdir import go_home

if TYPE_CHECKING:
    from groundray.benchmarks.measure import Report

EXIT_DISAGREEMENT, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 measured, 1 contenders compute different things, 2 options or data that cannot be used."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if rest and options.measure is not _step:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.settings = rest
    from groundray.benchmarks.published_losses import Disagreement  # brings torch, which --help does without

    measure: Callable[[argparse.Namespace, Callable[[str], None]], Report] = options.measure
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        go_home(errors.print)
        report = measure(options, errors.print)
    except Disagreement as error:
        errors.print(f"error: {error}")
        return EXIT_DISAGREEMENT
    except (FileNotFoundError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        return EXIT_INTERRUPTED
    table_console().print(report.table())
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.bench", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="BENCHMARK")

    loss = kinds.add_parser("loss", help="the grounding loss: forward, backward, memory")
    loss.add_argument("--batch", type=_positive, nargs="+", default=[32, 180, 512], metavar="N", help="(32 180 512)")
    loss.add_argument(
        "--tokens",
        type=_positive,
        nargs="+",
        default=[32, 14],
        metavar="N",
        help="valid of 32, on average (32 14)",
    )
    loss.add_argument("--only", nargs="+", default=[], metavar="NAME", help="beside groundray itself (default: all)")
    loss.set_defaults(measure=_loss)

    relation = kinds.add_parser("relation", help="the relation losses: forward, backward, memory")
    relation.add_argument("--triplets", type=_positive, nargs="+", default=[100, 500], metavar="N", help="(100 500)")
    relation.add_argument("--predicates", type=_positive, default=100, metavar="N", help="(100)")
    relation.set_defaults(measure=_relation)

    streams = kinds.add_parser("input", help="shards to batches: samples a second, time to the first batch")
    streams.add_argument("--data", metavar="SHARDS", help="folder of caption shards (default: drawn photos)")
    streams.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="samples of a batch (64)")
    streams.add_argument("--samples", type=_positive, metavar="N", help="streamed each time (default: two epochs')")
    streams.add_argument(
        "--cpus", type=_positive, default=joblib.cpu_count(), metavar="N", help="to read and decode on (default: all)"
    )
    streams.set_defaults(measure=_input)

    step = kinds.add_parser("step", help="a grounding step: with trunk features or images, with Ray or without")
    step.add_argument("--config", default="photos", metavar="PRESET|FILE.yaml", help="with a frozen trunk (photos)")
    step.add_argument("--data", metavar="SHARDS", help="folder of caption shards (default: drawn photos)")
    step.add_argument("--workers", type=_positive, default=1, metavar="N", help="of the contenders with Ray (1)")
    step.set_defaults(measure=_step)
    step.epilog = "further --dotted.field VALUE are settings on top of the preset's"

    search = kinds.add_parser("search", help="the nearest of many vectors, against FAISS: time and recall")
    search.add_argument("--vectors", type=_positive, default=41_620, metavar="N", help="of the pool (41620)")
    search.add_argument("--width", type=_positive, default=768, metavar="N", help="of a vector (768)")
    search.add_argument("--threads", type=_positive, default=1, metavar="N", help="of each contender (1)")
    search.set_defaults(measure=_search)

    service = kinds.add_parser("service", help="search over HTTP: one client, then many at once")
    service.add_argument("--checkpoint", default="runs/demo/model", metavar="DIR", help="(runs/demo/model)")
    service.add_argument(
        "--images", default="data/scenes/captions/val", metavar="SHARDS", help="(data/scenes/captions/val)"
    )
    service.add_argument("--clients", type=_positive, default=50, metavar="N", help="at once (50)")
    service.add_argument("--replicas", type=_positive, default=1, metavar="N", help="(1)")
    service.add_argument("--seconds", type=_positive, default=60, metavar="N", help="that many clients ask (60)")
    service.set_defaults(measure=_service)

    for kind in (loss, relation, streams, step, search, service):
        kind.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there too")
    for kind, repeats in ((loss, 5), (relation, 5), (streams, 5), (step, 5), (search, 300)):
        kind.add_argument("--repeats", type=_positive, default=repeats, metavar="N", help=f"timed rounds ({repeats})")
        kind.add_argument(
            "--most-seconds", type=_positive, default=120, metavar="N", help="no round starts after so long (120)"
        )
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _loss(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import contrastive_loss

    return contrastive_loss.measure(
        options.batch, options.tokens, options.only, options.repeats, options.most_seconds, note
    )


def _relation(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import relation_step

    return relation_step.measure(options.triplets, options.predicates, options.repeats, options.most_seconds, note)


def _input(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import input_pipeline as streams

    return streams.measure(
        options.data,
        options.batch_size,
        options.samples,
        options.cpus,
        options.repeats,
        options.most_seconds,
        note,
    )


def _step(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import training_step

    return training_step.measure(
        options.config, options.settings, options.data, options.workers, options.repeats, options.most_seconds, note
    )


def _search(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import vector_search

    return vector_search.measure(
        options.vectors, options.width, options.threads, options.repeats, options.most_seconds, note
    )


def _service(options: argparse.Namespace, note: Callable[[str], None]) -> Report:
    from groundray.benchmarks import search_service

    return search_service.measure(
        options.checkpoint, options.images, options.clients, options.replicas, options.seconds, note
    )


if __name__ == "__main__":
    sys.exit(main())
