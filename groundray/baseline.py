"""`python -m groundray.baseline`: word vectors of other kinds of evidence, to compare a model with in every table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from groundray.cli.command import CHECKPOINT, plain_console, run_command
from groundray.cli.progress import Progress
from groundray.cli.workdir import open_paths

if TYPE_CHECKING:
    from groundray.baselines.method import Method
    from groundray.baselines.watch import Watch
    from groundray.baselines.words import WordVectors
    from groundray.data.schema import Dataset

ABOUT = {
    "picturebook": "a word is the mean of its images' features",
    "bovw": "a word is the visual words of its images (bag of visual words)",
    "vico": "words that apply to the same object or image of scene graphs",
    "glove": "words that stand near each other in captions",
}
KINDS = {
    "picturebook": ("captions", "scene_graphs", "labelled_images"),
    "bovw": ("captions", "scene_graphs", "labelled_images"),
    "vico": ("scene_graphs",),
    "glove": ("captions", "text"),
}
IMAGE_SIZE, PER_WORD, CLUSTERS, WINDOW, EPOCHS, X_MAX, ALPHA, RATE = 224, 100, 500, 10, 50, 100.0, 0.75, 0.05
WIDTHS = {"glove": 100, "vico": 50, "joint": 100}
MIN_COUNT, SEED = 5, 0

Made = tuple["WordVectors", "Method"]
Make = Callable[[argparse.Namespace, "list[Dataset]", "Watch"], Made]


def main(argv: Sequence[str] | None = None) -> int:
    """Make vectors and return the exit status: 0, 2 the data or the options cannot be used, 130 or 143 stopped by
    Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; nothing was written")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)
    open_paths(errors.print, [*options.data, options.out, getattr(options, "checkpoint", None)])
    from groundray.baselines import vector_file  # imports torch, which --help does without
    from groundray.benchmarks.measure import chosen_device
    from groundray.data.schema import Dataset
    from groundray.storage.folder import Folder
    from groundray.tracking.model_uris import locate

    out, console, make = Folder.at(options.out), plain_console(), MAKE[options.method]
    if getattr(options, "device", None):
        chosen_device(options.device)
    if checkpoint := getattr(options, "checkpoint", None):
        options.checkpoint = locate(checkpoint, errors.print).place
    datasets = [Dataset.open(shards, *KINDS[options.method]) for shards in options.data]
    _refuse_repeated(datasets)
    command = shlex.join(["groundray", "baseline", *argv])
    with vector_file.replaced(out, options.overwrite) as folder:
        with Progress(errors) as progress:
            made, method = make(options, datasets, progress)
        vector_file.write(folder, made, method, datasets, _settings(options), command)
    counts = "  ".join(f"{count:,} {what}" for what, count in made.counts.items())
    console.print(f"{options.method}  {counts}")
    for note in made.notes:
        console.print(f"note  {note}")
    console.print(f"vectors  {len(made.words):,} x {made.vectors.shape[1]}  {out}/{vector_file.VECTORS}")
    return 0


def _refuse_repeated(datasets: list[Dataset]) -> None:
    """Raise ValueError if shards are given twice: each of their images or texts would count twice."""
    places = [str(dataset.folder) for dataset in datasets]
    if repeated := next((place for place in places if places.count(place) > 1), None):
        raise ValueError(f"--data: expected different shards, got {repeated} twice: leave one out")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that the vectors depend on, besides the data."""
    others = ("method", "data", "out", "overwrite", "device")
    return {name.replace("_", "-"): value for name, value in vars(options).items() if name not in others}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray baseline",
        description="Make word vectors of other kinds of evidence from prepared shards: a row for every table of "
        "`groundray analyse`, by --model NAME=FILE.",
    )
    methods = parser.add_subparsers(required=True, metavar="METHOD")
    for name, about in ABOUT.items():
        command = methods.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False
        )
        command.set_defaults(method=name)
        command.add_argument(
            "--data",
            action="append",
            required=True,
            metavar="SHARDS",
            help=f"folder or URL of shards of kind {' or '.join(KINDS[name])}; may be repeated",
        )
        command.add_argument(
            "--out", required=True, metavar="DIR", help="folder or URL to write vectors.parquet and its card to"
        )
        command.add_argument("--overwrite", action="store_true", help="replace the vectors in --out")
        if name in ("picturebook", "bovw"):
            _add_images(command, name)
        else:
            _add_co_occurrences(command, name)
        command.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"seed (default: {SEED})")
    return parser


def _add_images(command: argparse.ArgumentParser, name: str) -> None:
    group = command.add_argument_group("features of images")
    seeing = group.add_mutually_exclusive_group(required=True)
    seeing.add_argument(
        "--trunk", metavar="NAME", help="trunk whose feature map is used: vgg16, efficientnet_lite0, tiny or timm/NAME"
    )
    seeing.add_argument("--checkpoint", metavar="DIR", help=f"model whose visual stream is used: {CHECKPOINT}")
    group.add_argument(
        "--weights",
        metavar="none|published|FILE",
        help="the trunk's weights; none: random (default: published, of tiny none)",
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help=f"short side of an image in pixels, whose centre a trunk sees (default: {IMAGE_SIZE})",
    )
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    group = command.add_argument_group("words and vectors")
    group.add_argument(
        "--min-count",
        type=int,
        default=MIN_COUNT,
        metavar="N",
        help=f"images that must have a word in their captions, objects or label (default: {MIN_COUNT})",
    )
    group.add_argument(
        "--images-per-word",
        type=int,
        default=PER_WORD,
        metavar="N",
        help=f"images of a word, chosen by the seed (default: at most {PER_WORD})",
    )
    if name == "picturebook":
        group.add_argument(
            "--not-centred",
            action="store_true",
            help="keep the mean over all images in the vectors (default: subtract it)",
        )
        return
    group.add_argument(
        "--clusters",
        type=int,
        default=CLUSTERS,
        metavar="N",
        help=f"visual words, the clusters of local features (default: {CLUSTERS})",
    )
    group.add_argument(
        "--weighting",
        choices=("ppmi", "lmi"),
        default="ppmi",
        help="weights of counts: positive pointwise, or local, mutual information (default: ppmi)",
    )
    group.add_argument(
        "--width", type=int, metavar="N", help="dimensions to reduce the vectors to, by SVD (default: all clusters)"
    )


def _add_co_occurrences(command: argparse.ArgumentParser, name: str) -> None:
    group = command.add_argument_group("words and co-occurrences")
    where = "captions or lines" if name == "glove" else "objects"
    group.add_argument(
        "--min-count",
        type=int,
        default=MIN_COUNT,
        metavar="N",
        help=f"times that a word must occur in {where} (default: {MIN_COUNT})",
    )
    if name == "glove":
        group.add_argument(
            "--window",
            type=int,
            default=WINDOW,
            metavar="N",
            help=f"words on each side that a word occurs with, weighted by 1/distance (default: {WINDOW})",
        )
        group.add_argument(
            "--width",
            type=int,
            default=WIDTHS["glove"],
            metavar="N",
            help=f"dimensions of the vectors (default: {WIDTHS['glove']})",
        )
    else:
        group.add_argument(
            "--joint",
            action="store_true",
            help="fit one vector to all kinds of co-occurrences (default: concatenate a vector of each kind)",
        )
        group.add_argument(
            "--width",
            type=int,
            metavar="N",
            help=f"dimensions of each kind's part, or with --joint of a vector (default: {WIDTHS['vico']}, with "
            f"--joint {WIDTHS['joint']})",
        )
    group = command.add_argument_group("fit")
    group.add_argument(
        "--epochs",
        type=int,
        default=EPOCHS,
        metavar="N",
        help=f"passes over the pairs of words that occur together (default: {EPOCHS})",
    )
    group.add_argument(
        "--x-max",
        type=float,
        default=X_MAX,
        metavar="X",
        help=f"count from which a pair has full weight (default: {X_MAX:g})",
    )
    group.add_argument(
        "--alpha",
        type=float,
        default=ALPHA,
        metavar="A",
        help=f"exponent of the weight below it, (count / x_max)^A (default: {ALPHA:g})",
    )
    group.add_argument(
        "--rate", type=float, default=RATE, metavar="R", help=f"learning rate of AdaGrad (default: {RATE:g})"
    )


def _picturebook(options: argparse.Namespace, datasets: list[Dataset], watch: Watch) -> Made:
    from groundray.baselines.picturebook import METHOD, picturebook

    seeing = _Seeing(options, datasets, watch)
    return picturebook(seeing.images, seeing.encoder, not options.not_centred, watch), seeing.described(METHOD)


def _bag_of_visual_words(options: argparse.Namespace, datasets: list[Dataset], watch: Watch) -> Made:
    from groundray.baselines.bag_of_visual_words import METHOD, bag_of_visual_words

    seeing = _Seeing(options, datasets, watch)
    made = bag_of_visual_words(
        seeing.images, seeing.encoder, options.clusters, options.weighting, options.width, options.seed, watch
    )
    return made, seeing.described(METHOD)


class _Seeing:
    """The images of words, and what encodes them, as the options say."""

    def __init__(self, options: argparse.Namespace, datasets: list[Dataset], watch: Watch):
        from groundray.baselines.image_encoder import ImageEncoder
        from groundray.baselines.word_images import WordImages

        if options.checkpoint:
            for name in ("weights", "image_size"):
                if getattr(options, name) is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option}: expected --trunk, got --checkpoint, which has its own: leave it out")
            self.encoder = ImageEncoder.of_checkpoint(options.checkpoint, options.device)
        else:
            options.image_size = IMAGE_SIZE if options.image_size is None else options.image_size
            self.encoder = ImageEncoder.of_trunk(
                options.trunk, options.weights, options.image_size, options.seed, options.device
            )
        self.images = WordImages.choose(datasets, options.images_per_word, options.min_count, options.seed, watch)

    def described(self, method: Method) -> Method:
        """Return the method with what encodes the images."""
        encoder = self.encoder
        return replace(
            method,
            about=f"{method.about}, by {encoder.about}",
            details=f"{method.details}\n\nFeatures are those of {encoder.about} (SHA-256 of its weights "
            f"{encoder.digest}); images are scaled to a short side of {encoder.crop.resize} pixels and cropped to "
            f"{encoder.crop.crop} at the centre.",
        )


def _vico(options: argparse.Namespace, datasets: list[Dataset], watch: Watch) -> Made:
    from groundray.baselines.vico import METHOD, vico

    if options.width is None:
        options.width = WIDTHS["joint" if options.joint else "vico"]
    return vico(datasets, _solver(options), options.joint, options.min_count, watch), METHOD


def _glove(options: argparse.Namespace, datasets: list[Dataset], watch: Watch) -> Made:
    from groundray.baselines.glove import METHOD, glove

    return glove(datasets, _solver(options), options.window, options.min_count, watch), METHOD


def _solver(options: argparse.Namespace) -> Any:
    from groundray.baselines.log_bilinear import Options

    return Options(options.width, options.epochs, options.x_max, options.alpha, options.rate, options.seed)


MAKE: dict[str, Make] = {
    "picturebook": _picturebook,
    "bovw": _bag_of_visual_words,
    "vico": _vico,
    "glove": _glove,
}


if __name__ == "__main__":
    sys.exit(main())
