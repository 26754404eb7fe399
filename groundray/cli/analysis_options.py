"""Options of the analyses: which models, which words and norms, which images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from groundray.cli.command import CHECKPOINT

if TYPE_CHECKING:
    from groundray.analysis.request import AnalysisRequest

NORM_FILES = ("concreteness", "categories", "features", "phrases", "pairs", "ratings", "rating_groups", "analogies")
# options that are paths or URLs
PATHS = (
    *(
        "checkpoint",
        "data",
        "images",
        "graphs",
        "labelled",
        "set_images",
        "norms",
        *NORM_FILES,
        "fit_on",
        "contrasts",
        "vocabulary",
    ),
    *("out", "cache", "json"),
)
OF_IMAGES = ("zero-shot", "compositional")  # analyses of models of images and texts
PROTOCOLS = ("published", "first-caption")
BATCH_SIZE, COMPONENTS, FOLDS, MIN_PEOPLE, MIN_COVERAGE = 64, 3, 5, 1, 0.5


def add_images_and_texts(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of an analysis of models of images and texts."""
    command.add_argument("--checkpoint", metavar="DIR", help=f"{CHECKPOINT} (default: none)")
    add_dual_encoders(command)
    if name == "zero-shot":
        command.add_argument(
            "--data",
            metavar="SHARDS",
            help="labelled images, as `prepare image-folder` writes them (default: what the run's stage visual was "
            "validated on)",
        )
        command.add_argument(
            "--template",
            action="append",
            default=[],
            metavar="SENTENCE",
            help="sentence that names a class, at {}; if repeated, their mean (default: 'a photo of a {}.')",
        )
    else:
        _add_sets(command, "--images")
    command.add_argument("--out", metavar="DIR", help="folder to write the report to (default: no report)")


def _add_sets(group: argparse._ActionsContainer, images: str) -> None:
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="NAME=FOLDER",
        help="a compositional set, sugarcrepe, aro, winoground or vsr, and the folder of its files; may be repeated",
    )
    group.add_argument(
        images,
        action="append",
        default=[],
        dest="set_images",
        metavar="FOLDER",
        help="folder of the sets' images; may be repeated (default: the set's own folder, or images/ in it)",
    )


def add_dual_encoders(command: argparse.ArgumentParser) -> None:
    """Add the option of other models of images and texts."""
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a model of images and texts as transformers writes it (CLIP, SigLIP, ALIGN), with its image processor; "
        "may be repeated",
    )


def add_models(command: argparse.ArgumentParser) -> None:
    """Add the options of models and of how a text's vector is computed."""
    group = command.add_argument_group(
        "models", "a run's controls (ungrounded, text-only, grounded, relational), and other models"
    )
    group.add_argument("--checkpoint", metavar="DIR", help=f"{CHECKPOINT} (default: none)")
    group.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER|FILE",
        help="another model: a folder that transformers or sentence-transformers wrote, a model in MLflow, minilm, or "
        "a file of word vectors (GloVe, word2vec, fastText, Parquet); may be repeated",
    )
    group = command.add_argument_group("vectors")
    group.add_argument(
        "--special-tokens",
        action="store_true",
        help="include special tokens ([CLS] and [SEP]) in the mean over a text's tokens",
    )
    group.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="hidden state to use, from 0, or from -1 backwards (default: -1, the last)",
    )
    group.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="sentence to embed texts in, at {}, as in 'a photo of a {}'; if repeated, their mean (default: none)",
    )
    group.add_argument(
        "--no-projection",
        action="store_true",
        help="take the mean over a text's tokens of CLIP, SigLIP and ALIGN too (default: their projected vectors)",
    )
    group.add_argument(
        "--min-coverage",
        type=float,
        default=MIN_COVERAGE,
        metavar="F",
        help="fraction of an analysis' words, of those that the model with the widest vocabulary knows, that a model "
        f"must know to be compared in it; 0: all are, over the words that all know (default: {MIN_COVERAGE:g})",
    )
    group.add_argument("--cache", metavar="DIR", help="folder that keeps vectors (default: ~/.cache/groundray)")
    group.add_argument(
        "--ray", action="store_true", help="embed texts on a Ray cluster: at RAY_ADDRESS, or one of this machine"
    )
    group.add_argument("--use-gpu", action="store_true", help="with --ray, embed texts on GPUs")
    default = "the run's analysis/" if command.get_default("name") == "all" else "no report"
    command.add_argument("--out", metavar="DIR", help=f"folder to write the report to (default: {default})")


def add_norms(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of the norms and word sets that an analysis reads, or of all for `all`."""

    def takes(*names: str) -> bool:
        return name in (*names, "all")

    group = command.add_argument_group("norms and word sets, tables as CSV or TSV")
    group.add_argument(
        "--norms",
        metavar="DIR",
        help="folder with any of concreteness.csv; categories.csv, semcat100.csv or semcat/; features.csv; "
        "composition.csv; category_sets/; similarity/; ratings/; analogies/ (default: the run's setting "
        "analysis.norms)",
    )
    if takes("axes"):
        group.add_argument(
            "--concreteness", metavar="FILE", help="table with columns word, concreteness (default: of --norms)"
        )
    if takes("axes", "categories", "composition", "analogies"):
        group.add_argument(
            "--categories",
            metavar="FILE|DIR",
            help="table with columns category, word (or scene, sentence); or a folder with a file per category ("
            "default: of --norms)",
        )
    if takes("axes"):
        group.add_argument(
            "--components",
            type=int,
            default=COMPONENTS,
            metavar="K",
            help=f"number of principal axes (default: {COMPONENTS})",
        )
        group.add_argument(
            "--fit-on",
            metavar="rated|words|rows|FILE",
            help="words to fit the axes on, which change the correlations: those of the categories that are rated, all "
            "of them, a word as often as it stands there, or those of a file (default: the run's setting "
            "analysis.fit_on, or rated)",
        )
        group.add_argument(
            "--contrasts",
            metavar="FILE",
            help="table with columns contrast, side, category: sets of categories that the axes are to tell apart "
            "(default: human or not, animate or not, object or scene, of SemCat's categories)",
        )
    if takes("norms"):
        group.add_argument(
            "--features",
            metavar="FILE",
            help="table with columns concept, feature, production_frequency[, type] (default: of --norms)",
        )
        group.add_argument(
            "--class-weight",
            choices=("none", "balanced"),
            default="none",
            help="balanced: concepts with and without a feature have the same total weight (default: none)",
        )
        group.add_argument(
            "--folds", type=int, default=FOLDS, metavar="N", help=f"folds of the cross-validation (default: {FOLDS})"
        )
        group.add_argument(
            "--min-people",
            type=float,
            default=MIN_PEOPLE,
            metavar="N",
            help=f"people who must name a feature for a concept to have it (default: {MIN_PEOPLE})",
        )
    if takes("composition"):
        group.add_argument(
            "--phrases", metavar="FILE", help="table with columns phrase, target (default: the paper's nine phrases)"
        )
        group.add_argument(
            "--images",
            metavar="SHARDS",
            help="captioned images that relate phrases and words (default: the run's validation data)",
        )
    if takes("similarity"):
        group.add_argument(
            "--pairs",
            action="append",
            default=[],
            metavar="FILE",
            help="table with columns word1, word2, score, or as published; may be repeated (default: of --norms)",
        )
        group.add_argument(
            "--strata",
            action="append",
            default=[],
            metavar="COLUMN",
            help="column of the pairs' file whose values are measured apart, numbers by quartile; or concreteness; may "
            "be repeated (default: columns of few values, such as POS, and concreteness)",
        )
    if takes("ratings"):
        group.add_argument(
            "--ratings",
            action="append",
            default=[],
            metavar="FILE",
            help="table with a column word and a column of numbers a dimension; may be repeated (default: of --norms)",
        )
        group.add_argument(
            "--rating-groups",
            metavar="FILE",
            help="table with columns dimension, group (default: of --norms, or the domains of Binder et al. 2016)",
        )
    if takes("composition", "analogies"):
        group.add_argument(
            "--vocabulary",
            metavar="FILE",
            help="words to rank for a phrase or an analogy (default: the words of the categories)",
        )
    if takes("analogies"):
        group.add_argument(
            "--analogies",
            action="append",
            default=[],
            metavar="FILE",
            help="table with columns a, b, c, target[, candidates], or four words a line; may be repeated (default: of "
            "--norms)",
        )
    if name == "all":
        _add_sets(group, "--set-images")
        group.add_argument(
            "--labelled", metavar="SHARDS", help="labelled images for zero-shot classification (default: none)"
        )
        group.add_argument(
            "--graphs", metavar="SHARDS", help="scene graphs for relations (default: the run's validation data)"
        )


def request_of(options: argparse.Namespace) -> AnalysisRequest:
    """Return the request that the options make.

    Raises:
        FileNotFoundError, ValueError: an option is out of range, or norms do not exist.
    """
    from groundray.analysis.inputs.catalog import Norms
    from groundray.analysis.inputs.embedding import Options
    from groundray.analysis.measures.feature_norms import ClassifierOptions
    from groundray.analysis.request import AnalysisRequest

    given = vars(options)
    if given.get("batch_size", 1) < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    if not 0 <= given.get("min_coverage", 0) <= 1:
        raise ValueError(f"--min-coverage: expected 0 to 1, got {options.min_coverage:g}")
    files = {name: file for name in NORM_FILES if (file := given.get(name))}
    norms = Norms.at(options.norms) if given.get("norms") else None
    if files:
        norms = (norms or Norms()).with_files(**files)
    return AnalysisRequest(
        checkpoint=options.checkpoint,
        models=tuple(options.model),
        norms=norms,
        images=given.get("images"),
        graphs=given.get("graphs"),
        batch_size=given.get("batch_size", BATCH_SIZE),
        embedding=Options(
            given.get("special_tokens", False),
            given.get("layer", -1),
            tuple(given.get("template", ())),
            projected=not given.get("no_projection", False),
        ),
        classifiers=ClassifierOptions(given.get("folds", FOLDS), given.get("class_weight", "none")),
        min_people=given.get("min_people", MIN_PEOPLE),
        components=given.get("components", COMPONENTS),
        fit_on=given.get("fit_on"),
        contrasts=given.get("contrasts"),
        vocabulary=given.get("vocabulary"),
        strata=tuple(given.get("strata", ())),
        sets=tuple(given.get("sets", ())),
        min_coverage=given.get("min_coverage", MIN_COVERAGE),
        set_images=tuple(given.get("set_images", ())),
        labelled=given.get("labelled") or (given.get("data") if options.name == "zero-shot" else None),
    )
