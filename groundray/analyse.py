"""`python -m groundray.analyse`: what a trained model has learned, as tables on screen, as a report and as JSON."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from groundray.cli.progress import table_console
from groundray.cli.workdir import go_home
from groundray.config import Settings
from groundray.storage.folder import Folder

if TYPE_CHECKING:
    from groundray.analysis.jobs import Wanted

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
FILES = ("concreteness", "categories", "features", "phrases", "pairs")
# options that are paths or URLs
PLACES = ("checkpoint", "data", "images", "graphs", "norms", *FILES, "fit_on", "vocabulary", "out", "cache")
ABOUT = {
    "retrieval": "recall@k and ranks between images and captions, both ways",
    "relations": "predicates and objects found, against majority and a blank image",
    "axes": "principal axes of word vectors against human concreteness",
    "norms": "which features of concepts can be read from their vectors, held out",
    "categories": "how well categories of words hold together",
    "composition": "where a phrase finds the word that it stands for",
    "similarity": "rank correlation with human similarity of word pairs",
    "all": "everything that there is data for, and a report of it",
}


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 where some analyses of `all` could not be made of their data, 2 for a checkpoint or data
    that cannot be used, 130 ended by Ctrl-C."""
    options = _parser().parse_args(words)
    console = table_console()
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    analyse: Callable[[argparse.Namespace, Console, Console], tuple[dict[str, Any], int]] = options.analyse
    try:
        go_home(errors.print)
        file = Folder.connect(options.json) if options.json else None
        for place in _places(options):
            Folder.connect(place)
        result, status = analyse(options, console, errors)
        if file:
            file.parent.make().write_json(file.name, result)
    except (OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        errors.print("interrupted; vectors that were made are kept")
        return EXIT_INTERRUPTED
    return status


def _places(options: argparse.Namespace) -> list[str]:
    """Every path and URL that was given."""
    given = (getattr(options, name, None) or [] for name in PLACES)
    models = (model.partition("=")[2] for model in getattr(options, "model", ()))
    return [*itertools.chain.from_iterable([one] if isinstance(one, str) else one for one in given), *models]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.analyse", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="ANALYSIS")
    for name, about in ABOUT.items():
        one = kinds.add_parser(name, help=about, description=about, allow_abbrev=False)
        one.set_defaults(name=name, analyse=_of_words, track=False)
        if name in ("retrieval", "relations"):
            one.set_defaults(analyse=_retrieval if name == "retrieval" else _relations)
            one.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's model/ folder, path or URL")
            one.add_argument("--data", metavar="SHARDS", help="(default: what the run was validated on)")
        else:
            _add_models(one)
            _add_norms(one, name)
        if name in ("retrieval", "relations", "composition", "all"):
            one.add_argument("--batch-size", type=int, default=64, metavar="N", help="images encoded at once (64)")
        if name == "all":
            one.add_argument("--track", action="store_true", help="add what is found to the run's MLflow run")
        one.add_argument("--json", metavar="FILE", help="path or URL to write the numbers to, too")
    return parser


def _add_models(one: argparse.ArgumentParser) -> None:
    group = one.add_argument_group(
        "models", "a run's controls (ungrounded, text-only, grounded, relational), and others"
    )
    group.add_argument("--checkpoint", metavar="DIR", help="a run's model/ folder, path or URL")
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another: a folder that transformers or sentence-transformers wrote, or minilm; any number of times",
    )
    group = one.add_argument_group("vectors")
    group.add_argument("--special-tokens", action="store_true", help="[CLS] and [SEP] count in a text's mean")
    group.add_argument("--layer", type=int, default=-1, metavar="N", help="hidden state, from 0 or backwards (-1)")
    group.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="embed texts in it, in the place of {}, as in 'a photo of a {}'; the mean over several",
    )
    group.add_argument("--cache", metavar="DIR", help="keeps vectors (default: ~/.cache/groundray)")
    group.add_argument("--ray", action="store_true", help="make them on a Ray cluster: RAY_ADDRESS, or this machine's")
    group.add_argument("--use-gpu", action="store_true", help="with --ray, on its GPUs")
    one.add_argument("--out", metavar="DIR", help="folder of the report (of `all`, by default the run's analysis/)")


def _add_norms(one: argparse.ArgumentParser, name: str) -> None:
    def has(*names: str) -> bool:
        return name in (*names, "all")

    group = one.add_argument_group("norms and word sets, tables as CSV or TSV")
    group.add_argument(
        "--norms",
        metavar="DIR",
        help="concreteness.csv; categories.csv, semcat100.csv or semcat/; features.csv; composition.csv; similarity/ "
        "(default: as the run's setting analysis.norms)",
    )
    if has("axes"):
        group.add_argument("--concreteness", metavar="FILE", help="columns word, concreteness")
    if has("axes", "categories", "composition"):
        group.add_argument("--categories", metavar="FILE|DIR", help="columns category, word; or a file a category")
    if has("axes"):
        group.add_argument("--components", type=int, default=3, metavar="K", help="principal axes (3)")
        group.add_argument(
            "--fit-on", metavar="FILE", help="words that the axes are fitted on (those of the categories)"
        )
    if has("norms"):
        group.add_argument("--features", metavar="FILE", help="columns concept, feature, production_frequency[, type]")
        group.add_argument(
            "--class-weight",
            choices=("none", "balanced"),
            default="none",
            help="balanced: the concepts that have a feature weigh as much as those that do not (none)",
        )
        group.add_argument("--folds", type=int, default=5, metavar="N", help="of the cross-validation (5)")
        group.add_argument("--at-least", type=float, default=1, metavar="N", help="people who name a feature (1)")
    if has("composition"):
        group.add_argument("--phrases", metavar="FILE", help="columns phrase, target (default: the paper's nine)")
        group.add_argument("--vocabulary", metavar="FILE", help="words that a phrase is compared with")
        group.add_argument(
            "--images", metavar="SHARDS", help="captioned images that texts are seen through (default: validation's)"
        )
    if has("similarity"):
        group.add_argument("--pairs", action="append", default=[], metavar="FILE", help="word, word, score")
    if name == "all":
        group.add_argument("--graphs", metavar="SHARDS", help="scene graphs of `relations` (default: validation's)")


def _wanted(options: argparse.Namespace) -> Wanted:
    from groundray.analysis.inputs.catalog import Norms
    from groundray.analysis.inputs.embedding import Options
    from groundray.analysis.jobs import BATCH_SIZE, Wanted

    given = vars(options)
    if given.get("batch_size", 1) < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    files = {name: given.get(name) for name in FILES}
    norms = Norms.at(options.norms) if options.norms else None
    if any(files.values()):
        norms = (norms or Norms()).with_files(**{name: file for name, file in files.items() if file})
    return Wanted(
        checkpoint=options.checkpoint,
        models=tuple(options.model),
        norms=norms,
        images=given.get("images"),
        graphs=given.get("graphs"),
        batch_size=given.get("batch_size", BATCH_SIZE),
        embedding=Options(options.special_tokens, options.layer, tuple(options.template)),
        weighting=given.get("class_weight", "none"),
        folds=given.get("folds", 5),
        at_least=given.get("at_least", 1),
        components=given.get("components", 3),
        fit_on=given.get("fit_on"),
        vocabulary=given.get("vocabulary"),
    )


def _of_words(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports
    from groundray.model import export

    wanted, tracked = _wanted(options), None
    if options.track:
        if wanted.checkpoint is None:
            raise ValueError("--track: expected --checkpoint DIR, of the run whose MLflow run is meant")
        tracked = Settings(**export.about(wanted.checkpoint).settings)
    return reports.carry_out(
        options.name,
        wanted,
        console,
        errors,
        out=options.out,
        cache=options.cache,
        on_ray=options.ray,
        use_gpu=options.use_gpu,
        tracked=tracked,
    )


def _retrieval(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports

    return reports.show_retrieval(options.checkpoint, options.data, options.batch_size, console), 0


def _relations(options: argparse.Namespace, console: Console, errors: Console) -> tuple[dict[str, Any], int]:
    from groundray.cli import reports

    return reports.show_relations(options.checkpoint, options.data, options.batch_size, console), 0


if __name__ == "__main__":
    sys.exit(main())
