"""`python -m groundray.analyse`: what a trained model has learned, as tables on screen and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

EXIT_USAGE = 2


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for a checkpoint or data that cannot be used."""
    options = _parser().parse_args(words)
    analyse: Callable[[argparse.Namespace, Console], dict[str, Any]] = options.analyse
    try:
        result = analyse(options, Console(highlight=False))
    except (FileNotFoundError, ValueError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"error: {error}")
        return EXIT_USAGE
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.analyse", description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="ANALYSIS")

    retrieval = kinds.add_parser("retrieval", help="recall@k and ranks between images and captions, both ways")
    retrieval.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's model/ folder")
    retrieval.add_argument("--data", required=True, metavar="SHARDS", help="folder of caption shards")
    retrieval.add_argument("--batch-size", type=int, default=64, help="images encoded at once (default: 64)")
    retrieval.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    retrieval.set_defaults(analyse=_retrieval)
    return parser


def _retrieval(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    from groundray.analysis.retrieval import retrieval
    from groundray.config import Settings
    from groundray.data.plan import Cursor
    from groundray.data.stream import stream
    from groundray.model import export
    from groundray.stage.grounding import source

    exported = export.load(Path(options.checkpoint))
    settings = Settings(**exported.details["settings"])
    stage = settings.stage("grounding").model_copy(update={"batch_size": options.batch_size})
    one_chunk = settings.model_copy(update={"scaling": settings.scaling.model_copy(update={"chunks": 1})})
    shards = source(one_chunk, stage, exported.tokenizer, options.data, shuffle=False)
    batches = (batch for step in stream(shards, Cursor(), epochs=1) for _, batch in step.chunks)
    found = retrieval(exported.model, batches, stage.similarity, stage.special_tokens)

    console.print(f"Retrieval among {found.images} images (chance recall@10 {found.chance:.3f})")
    table = Table()
    table.add_column("")
    for direction in ("text_to_image", "image_to_text"):
        table.add_column(direction.replace("_", " "), justify="right")
    for measure in ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank"):
        values = (found.metrics[f"{way}/{measure}"] for way in ("text_to_image", "image_to_text"))
        digits = 3 if measure.startswith("recall") else 1
        table.add_row(measure.replace("_", " "), *(f"{value:.{digits}f}" for value in values))
    console.print(table)
    return asdict(found)


if __name__ == "__main__":
    sys.exit(main())
