"""`python -m groundray.analyse`: what a trained model has learned, as tables on screen, as a report and as JSON."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from groundray.cli.analysis_options import (
    BATCH_SIZE,
    OF_IMAGES,
    PATHS,
    PROTOCOLS,
    add_dual_encoders,
    add_images_and_texts,
    add_models,
    add_norms,
    request_of,
)
from groundray.cli.command import CHECKPOINT, run_command, table_console
from groundray.cli.workdir import open_paths, write_json

ABOUT = {
    "retrieval": "recall@k and ranks between images and captions, in both directions",
    "relations": "accuracy of predicates and objects, against the majority and a blank image",
    "axes": "correlation of the principal axes of word vectors with human concreteness",
    "norms": "features of concepts that a classifier reads from held-out word vectors",
    "categories": "cohesion of categories of words",
    "composition": "rank of the word that a phrase stands for",
    "similarity": "rank correlation with human similarity of word pairs",
    "ratings": "human ratings on many dimensions, predicted for held-out words by ridge regression",
    "analogies": "accuracy of a : b :: c : ?, from candidates or over a vocabulary",
    "zero-shot": "accuracy of the class whose text is most similar to an image",
    "compositional": "whether the true caption beats others of the same words: SugarCrepe, ARO, Winoground, VSR",
    "all": "every analysis that there is data for, and a report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse and return the exit status: 0, 1 some analyses of `all` could not be made of their data, 2 the checkpoint
    or the data cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; the vectors made so far are kept")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    analyse: Callable[[argparse.Namespace, Console, Console], tuple[dict[str, Any], int]] = options.analyse
    open_paths(errors.print, _paths(options))
    _locate_models(options, errors)
    result, status = analyse(options, table_console(), errors)
    write_json(options.json, result)
    return status


def _paths(options: argparse.Namespace) -> list[str]:
    """Return every path and URL among the options."""
    given = (getattr(options, name, None) or [] for name in PATHS)
    named = (*getattr(options, "model", ()), *getattr(options, "sets", ()))
    models = (one.partition("=")[2] for one in named)
    return [*itertools.chain.from_iterable([path] if isinstance(path, str) else path for path in given), *models]


def _locate_models(options: argparse.Namespace, errors: Console) -> None:
    """Replace MLflow's names of models among the options by the places of their files."""
    from groundray.storage.user_cache import user_cache
    from groundray.tracking.model_uris import DOWNLOADS, locate

    downloads = user_cache(getattr(options, "cache", None)) / DOWNLOADS
    options.known = None  # what MLflow knows of the checkpoint
    if options.checkpoint:
        located = locate(options.checkpoint, errors.print, downloads)
        options.checkpoint, options.known = located.place, located.model
    named = [model.partition("=") for model in getattr(options, "model", ())]
    options.model = [
        f"{name}{equals}{locate(place, errors.print, downloads, exported=False).place}" for name, equals, place in named
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="groundray analyse", description="Measure what a trained model has learned.")
    analyses = parser.add_subparsers(required=True, metavar="ANALYSIS")
    for name, about in ABOUT.items():
        command = analyses.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False
        )
        command.set_defaults(name=name, analyse=ANALYSE.get(name, _analyse_words), track=False)
        if name in ANALYSE:
            command.add_argument("--checkpoint", required=name != "retrieval", metavar="DIR", help=CHECKPOINT)
            command.add_argument(
                "--data", metavar="SHARDS", help="shards to measure on (default: the run's validation data)"
            )
            if name == "retrieval":
                add_dual_encoders(command)
                command.add_argument(
                    "--protocol",
                    choices=PROTOCOLS,
                    default=PROTOCOLS[0],
                    help="published: all captions are queries, and any of an image's first five counts; first-caption: "
                    "an image's first caption alone, as in validation (default: published, beside first captions)",
                )
        elif name in OF_IMAGES:
            add_images_and_texts(command, name)
        else:
            add_models(command)
            add_norms(command, name)
        if name in ("retrieval", "relations", "composition", *OF_IMAGES, "all"):
            command.add_argument(
                "--batch-size",
                type=int,
                default=BATCH_SIZE,
                metavar="N",
                help=f"images encoded at once (default: {BATCH_SIZE})",
            )
        if name == "all":
            command.add_argument("--track", action="store_true", help="add the results to the run's MLflow run")
        command.add_argument(
            "--json", metavar="FILE", help="path or URL to write the numbers to as well (default: none)"
        )
    return parser


def _analyse_words(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports

    if options.name in OF_IMAGES:
        reports.refuse_others(options.model)
    request = request_of(options)
    if getattr(options, "use_gpu", False) and not options.ray:
        raise ValueError("--use-gpu: expected --ray beside it, which embeds on the cluster's GPUs, got --use-gpu alone")
    if options.track and request.checkpoint is None:
        raise ValueError("--track: expected --checkpoint DIR, the model of the run to add the results to, got none")
    return reports.run_analyses(
        options.name,
        request,
        console,
        errors,
        out=options.out,
        cache=getattr(options, "cache", None),
        on_ray=getattr(options, "ray", False),
        use_gpu=getattr(options, "use_gpu", False),
        tracked=reports.settings_of(request.checkpoint) if options.track and request.checkpoint else None,
        known=options.known,
    )


def _analyse_retrieval(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports

    found = reports.show_retrieval(
        options.checkpoint, options.data, options.batch_size, console, options.model, options.protocol
    )
    return found, 0


def _analyse_relations(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports

    return reports.show_relations(options.checkpoint, options.data, options.batch_size, console), 0


# analyses of images alone; the others, and `all`, are of words
ANALYSE = {"retrieval": _analyse_retrieval, "relations": _analyse_relations}


if __name__ == "__main__":
    sys.exit(main())
