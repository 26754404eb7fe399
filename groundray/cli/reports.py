"""Analyses on a command line or at a run's end: make them, print them, write the report, add it to MLflow."""

from __future__ import annotations

import contextlib
import posixpath
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

import joblib
from rich.console import Console

from groundray.analysis.exported import Missing, measure_relations
from groundray.analysis.inputs.catalog import Models, Norms
from groundray.analysis.inputs.lexicon import Coverage, KnownTexts
from groundray.analysis.inputs.model_loading import load_text_model
from groundray.analysis.inputs.norm_tables import read_words
from groundray.analysis.inputs.text_model import Embed, TextModel, Vectors, encode_here
from groundray.analysis.inputs.vector_cache import Cache
from groundray.analysis.jobs import ANALYSES, THROUGH_IMAGES, made_by_all
from groundray.analysis.jobs.job import AnalysisJob
from groundray.analysis.measures import image_text_retrieval
from groundray.analysis.measures.image_text_retrieval import Protocol
from groundray.analysis.measures.statistics import slug
from groundray.analysis.report import terminal
from groundray.analysis.report.document import FILES, JSON, PAGE, Report, as_json, files, metrics
from groundray.analysis.report.table_files import FOLDER as TABLES
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.analysis.systems import measure_retrieval, refuse_others, system_labels
from groundray.cli.command import EXIT_FAILED
from groundray.cli.progress import Progress
from groundray.config import Settings
from groundray.config.settings import FIT_ON
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.tracking.analysis_log import log_analysis
from groundray.tracking.model_uris import FoundModel
from groundray.training import layout

REPORT_FOLDER = "analysis"  # in a run's folder
REPORT_KEYS = "title|models|notes|skipped|made_of|summary|analyses"  # of a report.json without a seal
ALL = "all"
# what each command of `groundray.analyse` but `all` makes, of ANALYSES
MADE_BY = {
    "axes": ("axes",),
    "norms": ("norms",),
    "categories": ("categories",),
    "composition": ("composition", THROUGH_IMAGES),
    "similarity": ("similarity",),
    "ratings": ("ratings",),
    "analogies": ("analogies",),
    "zero-shot": ("zero_shot",),
    "compositional": ("compositional",),
}
Made = TypeVar("Made")
Update = Callable[[str, int, int], None]  # takes a task's name, how much is done, and the total


def make_report(
    names: Sequence[str], request: AnalysisRequest, embed: Embed, update: Update, required: frozenset[str] = frozenset()
) -> tuple[Report, bool]:
    """Return the report of some analyses, and whether everything was made that there is data for.

    Args:
        names: keys of ANALYSES, in their order.
        embed: returns the vectors of texts.
        update: shows progress.
        required: analyses whose failure is an error; another that fails is left out, with the reason.

    Raises:
        FileNotFoundError, ValueError: there is no model, or data of a required analysis is missing or cannot be used.
    """
    models = Models.of(request.checkpoint, request.models)
    request = request.resolved()
    skipped: dict[str, str] = {}
    complete = True

    def attempt(name: str, work: Callable[[], Made]) -> Made | None:
        nonlocal complete
        try:
            return work()
        except (OSError, ValueError) as error:
            if name in required:
                raise
            complete &= isinstance(error, Missing)
            skipped[name] = str(error)
            return None

    jobs = {name: job for name in names if (job := attempt(name, partial(ANALYSES[name], request)))}
    texts = [text for job in jobs.values() for text in job.texts]
    known = KnownTexts((), {}, {})
    if texts:
        loaded = {name: load_text_model(source, request.embedding) for name, source in models.sources.items()}
        known = KnownTexts.of(loaded, texts, embed)
    coverage = Coverage(request.min_coverage)
    analyses = []
    for done, (name, job) in enumerate(jobs.items(), start=1):
        if analysis := attempt(name, partial(_analyse, name, job, known, coverage)):
            analyses.append(analysis)
        update("analyses", done, len(jobs))
    checkpoint = request.checkpoint
    title = export.about(checkpoint).settings["run"]["name"] if checkpoint else ", ".join(models.sources)
    notes = (
        *coverage.notes,
        *(models.notes if texts else ()),
        *known.reasons,
        *(request.norms or Norms()).passed_over,
        *(note for job in jobs.values() for note in job.notes),
    )
    report = Report(title, models.sources, tuple(analyses), tuple(dict.fromkeys(notes)), skipped, request.made_of())
    return report, complete


def _analyse(name: str, job: AnalysisJob, known: KnownTexts, coverage: Coverage) -> Analysis:
    """Return the analysis over the texts that its models know."""
    return job.analyse(coverage.lexicon(name, known, job.texts))


def run_analyses(
    command: str,
    request: AnalysisRequest,
    console: Console,
    errors: Console,
    out: str | None = None,
    cache: str | None = None,
    on_ray: bool = False,
    use_gpu: bool = False,
    tracked: Settings | None = None,
    known: FoundModel | None = None,
) -> tuple[dict[str, Any], int]:
    """Make and print analyses; return them as JSON, with the exit status: 0, or 1 if one could not be made of its data.

    Args:
        command: a key of MADE_BY, or `all`.
        console: takes the results.
        errors: takes progress and errors.
        out: folder of the report; None for the run's own with `all`, and for none with another command.
        cache: folder that keeps vectors; None for the user's own.
        on_ray: embed texts on a Ray cluster; with `use_gpu` on its GPUs.
        tracked: the settings of a run, to add the results to its MLflow run.
        known: the checkpoint, if it is a model in MLflow.

    Raises:
        FileNotFoundError, ValueError: as `make_report`.
    """
    everything = command == ALL
    names = made_by_all(request) if everything else MADE_BY[command]
    required = frozenset() if everything else frozenset(names if request.images else names[:1])
    folder = out or (str(_report_folder(request.checkpoint, known)) if everything else None)
    if folder:  # before the work: where it cannot be made, nothing could be written
        Folder.at(folder).make()
    with Progress(errors) as progress, _embed(cache, on_ray, use_gpu, progress, errors) as embed:
        report, complete = make_report(names, request, embed, progress.update, required)
        written = write_report(report, folder, progress.update) if folder else {}
    for table in (terminal.comparison(report, console, everything), *([] if everything else terminal.tables(report))):
        console.print(table)
    for line in (*terminal.notes(report), *(terminal.summary(report) if everything else ())):
        console.print(line, soft_wrap=True)
    if folder:
        console.print(f"report  {folder}/{PAGE}", soft_wrap=True)
    if tracked and request.checkpoint:
        run = known or Folder.at(request.checkpoint).parent
        complete &= log_analysis(tracked, run, metrics(report), written, errors.print)
    return as_json(report), 0 if complete else EXIT_FAILED


def write_report(report: Report, path: str, update: Update) -> dict[str, bytes]:
    """Write a report to a folder on a path or URL; return its files by name. Files of another report that was there
    are deleted: nobody takes its tables and pictures for this one's."""
    folder = Folder.at(path).make()
    earlier = _listed(folder)
    total = sum(1 + len(analysis.pictures) for analysis in report.analyses) + 2
    drawn = {}
    for count, (name, content) in enumerate(files(report, joblib.cpu_count()), start=1):
        drawn[name] = content
        update("report", min(count, total), total)
    for parent in {posixpath.dirname(name) for name in drawn} - {""}:
        (folder / parent).make()
    for name, content in drawn.items():  # after all are drawn: an interrupted analysis leaves no part of a report
        folder.write_bytes(name, content)
    for name in earlier - drawn.keys():
        folder.delete(name)
    return drawn


def _listed(folder: Folder) -> set[str]:
    """Return the files of the report in a folder, as its JSON lists them; none if it cannot be read."""
    try:
        names = folder.read_sealed(JSON, REPORT_KEYS).get(FILES, [])
    except (FileNotFoundError, Damaged):
        return set()
    places = [PurePosixPath(name) for name in names]
    return {
        str(place)
        for place in places
        if str(place.parent) in (".", TABLES) and place.suffix in (".png", ".csv", ".tex")
    }


def settings_of(checkpoint: str) -> Settings:
    """Return the settings that an exported model was trained with."""
    return Settings.stored(export.about(checkpoint).settings)


def norms_problem(settings: Settings) -> str | None:
    """Return why the analysis at the end of a run cannot read its norms; None if it can, or if there is no analysis."""
    own = settings.analysis
    if own.enabled and own.norms:
        setting = "norms"
        try:
            Norms.at(own.norms)
            if own.fit_on and own.fit_on not in FIT_ON:
                setting = "fit_on"
                read_words(own.fit_on)
        except (OSError, ValueError) as error:
            return f"analysis.{setting}: {error} (or run with --analysis.enabled false)"
    return None


def unread_norms(settings: Settings) -> tuple[str, ...]:
    """Return a line for each file beside the norms that the analysis at the end of a run does not read."""
    if settings.analysis.enabled and settings.analysis.norms and norms_problem(settings) is None:
        return Norms.at(settings.analysis.norms).passed_over
    return ()


def analyse_run(settings: Settings, console: Console, report_error: Callable[[str], None]) -> None:
    """Analyse the model of a finished run, and add the results to its MLflow run, unless that was done before.

    An error is reported with the command to run by hand, and not raised: the run itself is complete.
    """
    if not settings.analysis.enabled or not settings.analysis.norms:
        return
    run_folder = layout.folder_of(settings)
    checkpoint, folder = f"{run_folder}/{layout.MODEL}", run_folder / REPORT_FOLDER
    by_hand = [ALL, "--checkpoint", checkpoint, "--norms", settings.analysis.norms]
    by_hand += ["--fit-on", settings.analysis.fit_on] if settings.analysis.fit_on else []
    by_hand += ["--track"] if settings.tracking.uses("mlflow") else []
    try:
        norms, fit_on = Norms.at(settings.analysis.norms), settings.analysis.fit_on
        request = AnalysisRequest(checkpoint=checkpoint, norms=norms, fit_on=fit_on)
        if read_made_of(folder, console.print) == request.made_of():
            console.print(f"analysis  exists already: {folder}/{PAGE}")
            return
        console.print("analysis  of the language streams")
        tracked = settings if settings.tracking.uses("mlflow") else None
        _, status = run_analyses(ALL, request, console, console, out=str(folder), tracked=tracked)
    except Exception as error:  # noqa: BLE001  whatever an analysis raises, the run is complete
        report_error(f"analysis failed, the run itself is complete: {type(error).__name__}: {error}")
        status = EXIT_FAILED
    if status:
        report_error(f"by hand: python -m groundray.analyse {shlex.join(by_hand)}")


def read_made_of(folder: Folder, note: Callable[[str], None]) -> dict[str, Any] | None:
    """Return what the report in a folder was made of; None if there is none, or, with a note, if it is damaged."""
    try:
        return folder.read_sealed(JSON, REPORT_KEYS).get("made_of")
    except FileNotFoundError:
        return None
    except Damaged as error:
        note(f"analysis  {error.file} is damaged ({error.reason}) and made again")
        return None


@contextlib.contextmanager
def _embed(cache: str | None, on_ray: bool, use_gpu: bool, progress: Progress, errors: Console) -> Iterator[Embed]:
    """Yield a function that returns the vectors of texts, and keeps them in the cache."""
    vectors = Cache.at(cache, errors.print)

    encode, connection = encode_here, contextlib.nullcontext()
    if on_ray:
        from groundray.runtime import cluster
        from groundray.runtime.data import embedding_tasks

        encode, connection = partial(embedding_tasks.encode, use_gpu=use_gpu), cluster.connect()

    def compute(model: TextModel, texts: Sequence[str]) -> Vectors:
        def update(done: int, total: int) -> None:
            progress.update(f"vectors of {Folder.at(model.name).name}", done, total)

        return model.embed(texts, update, encode)

    with connection:
        device = "cuda" if on_ray and use_gpu else "cpu"
        yield lambda model, texts: vectors.embed(model, texts, compute, device)


def _report_folder(checkpoint: str | None, known: FoundModel | None) -> Folder:
    """Return the default folder of a model's report: in its run's folder; of a model in MLflow in the working folder,
    by the model's name."""
    if known:
        return Folder.at(REPORT_FOLDER) / slug(known.uri.partition(":/")[2])
    return Folder.at(checkpoint).parent / REPORT_FOLDER if checkpoint else Folder.at(REPORT_FOLDER)


def show_retrieval(
    checkpoint: str | None,
    images: str | None,
    batch_size: int,
    console: Console,
    models: Sequence[str] = (),
    protocol: Protocol = "published",
) -> dict[str, Any]:
    """Print retrieval by stage and by model, and return it as JSON.

    Raises:
        FileNotFoundError, ValueError: a model or the shards cannot be used.
    """
    refuse_others(models)
    results = measure_retrieval(checkpoint, images, batch_size, models, protocol)
    for table in image_text_retrieval.tables(results, system_labels(checkpoint, models)):
        console.print(terminal.table(table))
    for name, one in results.items():
        if one.left_out:
            console.print(f"{name}  {', '.join(f'{count:,} {what}' for what, count in one.left_out.items())}")
    return {name: one.as_json() for name, one in results.items()}


def show_relations(checkpoint: str, graphs: str | None, batch_size: int, console: Console) -> dict[str, Any]:
    """Print relations, and return them as JSON."""
    results = measure_relations(checkpoint, graphs, batch_size)
    console.print(terminal.relations(results))
    return asdict(results)
