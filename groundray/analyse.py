"""`python -m groundray.analyse`: what a trained model has learned, as tables on screen and as JSON."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from groundray.config import Settings
from groundray.home import go_home
from groundray.storage import Folder

if TYPE_CHECKING:
    from groundray.data.stream import Source
    from groundray.model.export import About

EXIT_USAGE = 2


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for a checkpoint or data that cannot be used."""
    options = _parser().parse_args(words)
    analyse: Callable[[argparse.Namespace, Console], dict[str, Any]] = options.analyse
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        go_home(errors.print)
        file = Folder.reach(options.json) if options.json else None
        for place in (options.checkpoint, options.data):
            Folder.reach(place)
        result = analyse(options, Console(highlight=False))
        if file:
            file.parent.make().write_json(file.name, result)
    except (OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.analyse", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="ANALYSIS")
    for name, analyse, kind, about in (
        ("retrieval", _retrieval, "caption", "recall@k and ranks between images and captions, both ways"),
        ("relations", _relations, "scene-graph", "predicates and objects found, against majority and a blank image"),
    ):
        one = kinds.add_parser(name, help=about, description=about)
        one.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's model/ folder, or its URL")
        one.add_argument("--data", required=True, metavar="SHARDS", help=f"folder or URL of {kind} shards")
        one.add_argument("--batch-size", type=int, default=64, help="images encoded at once (default: 64)")
        one.add_argument("--json", metavar="FILE", help="path or URL to write the numbers to, too")
        one.set_defaults(analyse=analyse)
    return parser


def _settings(about: About, stage: str, batch_size: int) -> Settings:
    """The settings that a model was trained with, for reading data in batches of this size, in one piece."""
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")
    tree = copy.deepcopy(about.settings)
    tree["scaling"] |= {"num_workers": 0, "chunks": 1}
    tree[stage]["batch_size"] = batch_size
    return Settings(**tree)


def _batches(source: Source) -> Iterator[Any]:
    from groundray.data.plan import Cursor
    from groundray.data.stream import stream

    return (batch for step in stream(source, Cursor(), epochs=1) for _, batch in step.chunks)


def _retrieval(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    import torch

    from groundray.analysis.retrieval import by_heads, by_match_map
    from groundray.model import export
    from groundray.stage.grounding import captions

    found = {}
    about = export.about(options.checkpoint)
    for name in [stage.name for stage in about.stages if stage.name in ("grounding", "retrieval")]:
        exported = export.load(options.checkpoint, name)
        settings = _settings(about, name, options.batch_size)
        stage = settings.stage(name)
        batches = _batches(captions(settings, stage, exported.tokenizer, options.data, shuffle=False))
        with torch.no_grad():
            found[name] = (
                by_match_map(exported.model, batches, stage.similarity, stage.special_tokens)
                if name == "grounding"
                else by_heads(exported.model, batches, stage.special_tokens)
            )
    if not found:
        trained = ", ".join(stage.name for stage in about.stages)
        raise ValueError(f"the model has neither stage grounding nor retrieval: it was trained in {trained}")

    first = next(iter(found.values()))
    console.print(f"Retrieval among {first.images} images (chance recall@10 {first.chance:.3f})")
    table = Table()
    table.add_column("")
    ways = ("text_to_image", "image_to_text")
    for name in found:
        for way in ways:
            table.add_column(f"{name}\n{way.replace('_', ' ')}", justify="right")
    for measure in ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank"):
        digits = 3 if measure.startswith("recall") else 1
        values = [one.metrics[f"{way}/{measure}"] for one in found.values() for way in ways]
        table.add_row(measure.replace("_", " "), *(f"{value:.{digits}f}" for value in values))
    console.print(table)
    return {name: asdict(one) for name, one in found.items()}


def _relations(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from groundray.analysis.relations import relations
    from groundray.data.schema import Dataset
    from groundray.model import export
    from groundray.stage.protocol import words_of
    from groundray.stage.relational import scene_graphs

    exported = export.load(options.checkpoint, "relational")
    settings = _settings(exported.about, "relational", options.batch_size)
    stage = settings.stage("relational")
    dataset = Dataset.open(options.data, "scene_graphs")
    found = relations(
        exported.model,
        _batches(scene_graphs(settings, stage, exported.tokenizer, dataset, shuffle=False)),
        stage.special_tokens,
        taught=exported.about.vocabulary["relational"],
        used=words_of(dataset),
    )
    console.print(f"{found.triplets} relations between {found.objects} objects")
    if left_out := [f"{count} {what}" for what, count in found.unknown.items() if count]:
        console.print(f"left out, of words that the model was not taught: {', '.join(left_out)}")
    table = Table()
    for title in ("", "predicate", "without image", "object", "without image"):
        table.add_column(title, justify="right" if title else "left")
    for top in [name.removeprefix("predicate/") for name in found.metrics if name.startswith("predicate/")]:
        values = [
            metrics[f"{what}/{top}"]
            for what in ("predicate", "object")
            for metrics in (found.metrics, found.without_image)
        ]
        table.add_row(top.replace("top", "top-"), *(f"{value:.3f}" for value in values))
    table.add_row("majority", f"{found.majority['predicate']:.3f}", "", f"{found.majority['object']:.3f}", "")
    console.print(table)
    return asdict(found)


if __name__ == "__main__":
    sys.exit(main())
