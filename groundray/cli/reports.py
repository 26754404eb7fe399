"""Analyses for a person, at a command line or at a run's end: what is made of them, shown, written and tracked."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from rich.console import Console

from groundray.analysis.inputs.catalog import Models, Norms
from groundray.analysis.inputs.embedding import Embed, Embedder, Vectors
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.vector_cache import Cache
from groundray.analysis.jobs import ANALYSES, Missing, Wanted, related, retrieved
from groundray.analysis.report import terminal
from groundray.analysis.report.document import JSON, PAGE, Report, as_json, files, metrics
from groundray.cli.progress import Meter
from groundray.config import Settings
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.tracking import log_analysis
from groundray.training import progression

EXIT_FAILED = 1
FOLDER = "analysis"  # of a run's report
Done = TypeVar("Done")
Progress = Callable[[str, int, int], None]  # of what, how much, of how much


def report(
    names: Sequence[str], wanted: Wanted, embed: Embed, progress: Progress, needed: frozenset[str] = frozenset()
) -> tuple[Report, bool]:
    """The report of some analyses, and whether all that there is data for could be made.

    Args:
        names: of ANALYSES, in their order.
        embed: makes the vectors of texts.
        needed: those whose failure is an error; others are left out, with the reason.

    Raises:
        FileNotFoundError, ValueError: there is no model, or data of what is needed is missing or cannot be used.
    """
    models = Models.of(wanted.checkpoint, wanted.models)
    wanted = wanted.resolved()
    skipped: dict[str, str] = {}
    failed = False

    def tried(name: str, work: Callable[[], Done]) -> Done | None:
        nonlocal failed
        try:
            return work()
        except (OSError, ValueError) as error:
            if name in needed:
                raise
            failed |= not isinstance(error, Missing)
            skipped[name] = str(error)
            return None

    plans = {name: plan for name in names if (plan := tried(name, partial(ANALYSES[name], wanted)))}
    texts = [text for plan in plans.values() for text in plan.texts]
    lexicon = Lexicon({}, {}, {})
    if texts:
        embedders = {name: Embedder.load(place, wanted.embedding) for name, place in models.places.items()}
        lexicon = Lexicon.of(embedders, texts, embed)
    found = []
    for done, (name, plan) in enumerate(plans.items(), start=1):
        if analysis := tried(name, partial(plan.make, lexicon)):
            found.append(analysis)
        progress("analyses", done, len(plans))
    title = export.about(wanted.checkpoint).settings["run"]["name"] if wanted.checkpoint else ", ".join(models.places)
    made = Report(title, models.places, tuple(found), models.notes, skipped, wanted.made_of())
    return made, not failed


def carry_out(
    name: str,
    wanted: Wanted,
    console: Console,
    errors: Console,
    out: str | None = None,
    cache: str | None = None,
    on_ray: bool = False,
    use_gpu: bool = False,
    tracked: Settings | None = None,
) -> tuple[dict[str, Any], int]:
    """What an analysis, or `all`, found as JSON, after it has been shown, and the exit status: 0, or 1 where something
    could not be made of its data.

    Args:
        console: shows what was found.
        errors: shows progress and what went wrong.
        out: folder of the report; None for the run's own of `all`, and for none of a single analysis.
        cache: folder that keeps vectors; None for the user's own.
        on_ray: make vectors on a Ray cluster; with `use_gpu` on its GPUs.
        tracked: the settings of a run, where what was found is to be added to its MLflow run.

    Raises:
        FileNotFoundError, ValueError: as `report`.
    """
    everything = name == "all"
    names = tuple(ANALYSES) if everything else tuple(one for one in ANALYSES if one.startswith(name))
    needed = frozenset() if everything else frozenset(names if wanted.images else {name})
    with Meter(errors) as meter, _maker(cache, on_ray, use_gpu, meter, errors) as embed:
        made, whole = report(names, wanted, embed, meter.show, needed)
        place = out or (str(_beside(wanted.checkpoint)) if everything else None)
        written = write(made, place, meter.show) if place else {}
    for grid in (terminal.comparison(made, console, everything), *([] if everything else terminal.tables(made))):
        console.print(grid)
    for line in terminal.notes(made):
        console.print(line, soft_wrap=True)
    if place:
        console.print(f"report  {place}/{PAGE}", soft_wrap=True)
    if tracked and wanted.checkpoint:
        whole &= log_analysis(tracked, Folder.at(wanted.checkpoint).parent, metrics(made), written, errors.print)
    return as_json(made), 0 if whole else EXIT_FAILED


def write(made: Report, place: str, progress: Progress) -> dict[str, bytes]:
    """The files of a report by name, after they have been written to a folder on a path or URL."""
    folder = Folder.at(place).make()
    total = sum(1 + len(analysis.pictures) for analysis in made.analyses) + 2
    written = {}
    for count, (name, content) in enumerate(files(made), start=1):
        folder.write_bytes(name, content)
        written[name] = content
        progress("report", min(count, total), total)
    return written


def problem(settings: Settings) -> str | None:
    """Why a run could not end with its analysis; None where it could, or is not to."""
    if settings.analysis.enabled and settings.analysis.norms:
        try:
            Norms.at(settings.analysis.norms)
        except (OSError, ValueError) as error:
            return f"analysis.norms: {error} (or run with --analysis.enabled false)"
    return None


def finish(settings: Settings, console: Console, complain: Callable[[str], None]) -> None:
    """Analyse the model of a run that has ended, and add what was found to its MLflow run: unless that was done before.

    Whatever goes wrong is said, with the command that does it by hand: the run itself is complete.
    """
    if not settings.analysis.enabled or not settings.analysis.norms:
        return
    checkpoint, place = (
        f"{progression.folder_of(settings)}/{progression.MODEL}",
        progression.folder_of(settings) / FOLDER,
    )
    by_hand = ["all", "--checkpoint", checkpoint, "--norms", settings.analysis.norms]
    by_hand += ["--track"] if settings.tracking.enabled else []
    try:
        wanted = Wanted(checkpoint=checkpoint, norms=Norms.at(settings.analysis.norms))
        if place.exists(JSON) and place.read_json(JSON).get("made_of") == wanted.made_of():
            console.print(f"analysis  is there already: {place}/{PAGE}")
            return
        console.print("analysis  of the language streams")
        tracked = settings if settings.tracking.enabled else None
        _, status = carry_out("all", wanted, console, console, out=str(place), tracked=tracked)
    except Exception as error:  # noqa: BLE001  whatever an analysis raises, the run is complete
        complain(f"analysis failed, the run itself is complete: {type(error).__name__}: {error}")
        status = EXIT_FAILED
    if status:
        complain(f"by hand: python -m groundray.analyse {shlex.join(by_hand)}")


@contextlib.contextmanager
def _maker(cache: str | None, on_ray: bool, use_gpu: bool, meter: Meter, errors: Console) -> Iterator[Embed]:
    """What makes the vectors of texts, and keeps them."""
    kept = Cache.at(cache, errors.print)

    def make(embedder: Embedder, texts: Sequence[str]) -> Vectors:
        def progress(done: int, total: int) -> None:
            meter.show(f"vectors of {Folder.at(embedder.name).name}", done, total)

        if on_ray:
            from groundray.runtime.data import embedding_tasks

            return embedding_tasks.embed(embedder, texts, progress, use_gpu)
        return embedder.embed(texts, progress)

    if on_ray:
        from groundray.runtime import cluster

        with cluster.connect():
            yield lambda embedder, texts: kept.embed(embedder, texts, make)
    else:
        yield lambda embedder, texts: kept.embed(embedder, texts, make)


def _beside(checkpoint: str | None) -> Folder:
    """Where the report of a model goes, if nobody says."""
    return Folder.at(checkpoint).parent / FOLDER if checkpoint else Folder.at(FOLDER)


def show_retrieval(checkpoint: str, images: str | None, batch_size: int, console: Console) -> dict[str, Any]:
    """Retrieval as JSON, after it has been shown."""
    found = retrieved(checkpoint, images, batch_size)
    console.print(terminal.retrieval(found))
    return {name: asdict(one) for name, one in found.items()}


def show_relations(checkpoint: str, graphs: str | None, batch_size: int, console: Console) -> dict[str, Any]:
    """Relations as JSON, after they have been shown."""
    found = related(checkpoint, graphs, batch_size)
    console.print(terminal.relations(found))
    return asdict(found)
