"""The public Python API, which `groundray` itself offers: `from groundray import load_settings, fit, open_model, ...`.

Each function imports what it needs when it is called, so that importing groundray is fast. None is named after a
command: `groundray.train`, `groundray.analyse` and `groundray.search` are modules, and importing one would replace a
function of that name in the package.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundray import config
from groundray.config import Settings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from groundray.image_search.query import Search
    from groundray.model.export import Exported
    from groundray.training.events import Event


def load_settings(config_or_file: str | Path = "demo", overrides: Mapping[str, Any] | Sequence[str] = ()) -> Settings:
    """Load the settings of a preset or YAML file.

    Args:
        config_or_file: name of a preset, or path of a YAML file.
        overrides: values by dotted name, such as `{"grounding.epochs": 3}`, or the command line's arguments, such as
            `["--grounding.epochs", "3"]`.

    Raises:
        SettingsError: the file, a name or a value cannot be used; the message names it and gives a repair.
    """
    if isinstance(overrides, Mapping):
        return config.changed(config.load(config_or_file), overrides)
    return config.load(config_or_file, overrides)


def fit(settings: Settings, observe: Callable[[Event], None] | None = None) -> dict[str, Any]:
    """Train all stages, as `groundray train` does, and return the content of the run's result.json.

    Draws the demo's data first if the settings name them and they are missing.

    Trains on Ray workers, or in this process if `scaling.num_workers` is 0. Calling it again with the same storage and
    name resumes the run. The finished model is in `<run.storage>/<run.name>/model`; `analyse_model` reports on it.

    Args:
        observe: called with each event of the run (`groundray.training.events`); by default, progress is printed.

    Raises:
        SettingsError, ValueError, OSError: settings or data cannot be used, or the cluster has too few resources.
        RunFailed: a worker failed; the checkpoints so far are kept.
        ArithmeticError: a loss or gradient was not finite.
    """
    from rich.console import Console

    from groundray.cli.embedded_world import with_embedded_world
    from groundray.cli.progress import Reporter
    from groundray.cli.start_model import with_start_model
    from groundray.runtime.train import launch
    from groundray.tracking.inquiry import Inquiry
    from groundray.tracking.tracker import Tracker
    from groundray.training import preflight

    reporter = Reporter(Console(quiet=True) if observe else None)
    settings = with_embedded_world(with_start_model(settings, _tell), reporter.console)
    preflight.check_storage(settings)
    inquiry = Inquiry(settings)
    run = preflight.check(settings)
    if problem := inquiry.problem():
        raise config.SettingsError(problem)
    launch.check_cluster(settings)
    claimed = preflight.claim(run)
    observers = [observe or reporter.observe]
    tracker = Tracker(run.settings, run.folder, claimed, warnings.warn) if settings.tracking.enabled else None
    if tracker:
        observers.append(tracker.observe)

    def notify(event: Event) -> None:
        for observer in observers:
            observer(event)

    def close(result: dict[str, Any] | None) -> None:
        reporter.close()
        if tracker:
            tracker.close(result, "FINISHED" if result else "FAILED")

    try:
        result = launch.fit(run, notify)
    except BaseException:
        close(None)
        raise
    close(result)
    return result


def open_model(path: str | Path, stage: str | None = None) -> Exported:
    """Load an exported model, in eval mode: `model`, `tokenizer`, `about` (its settings) and `stage`.

    Args:
        path: folder or URL of a finished run's model/, or MLflow's name of a model (`models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `models:/m-ID`, `runs:/RUN_ID/model`).
        stage: the model as it was after this stage, by default the last.

    Raises:
        FileNotFoundError: there is no exported model.
        ValueError: the model has another format, or no such stage.
    """
    from groundray.model import export

    return export.load(_place(path), stage)


def embed(model: Exported | str | Path, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
    """Return the vector of each text: the mean of the language stream's last hidden state over the text's tokens.

    Args:
        model: a model from `open_model`; or the path, URL or name, MLflow's too, of any language model that
            transformers can load (of CLIP, SigLIP or ALIGN the projected vectors), or of a file of word vectors.
        texts: words or phrases, each embedded on its own, without special tokens.

    Raises:
        ValueError: there is no such model, or it does not know all words of a text.
    """
    from groundray.analysis.inputs.embedding import Embedder
    from groundray.analysis.inputs.model_loading import load_text_model

    if isinstance(model, str | Path):
        return load_text_model(_place(model, exported=False)).embed(texts)
    name = f"{model.about.settings['run']['name']} ({model.stage.name})"
    # the embedder switches off the padding and truncation of its tokenizer
    return Embedder(name, model.model.language.encoder, copy.deepcopy(model.tokenizer)).embed(texts)


def analyse_model(
    checkpoint: str | Path, norms: str | Path | None = None, analyses: Sequence[str] = ()
) -> dict[str, Any]:
    """Analyse the language streams of an exported model, and return the numbers of `groundray analyse --json`.

    Args:
        checkpoint: as `path` of `open_model`.
        norms: folder or URL of norms and word sets; by default those of the run's setting `analysis.norms`.
        analyses: names of analyses, such as `["axes", "norms"]`; by default all that there is data for.

    Raises:
        FileNotFoundError, ValueError: there is no model or an unknown analysis, or data of a named analysis is missing.
    """
    from groundray.analysis.inputs.catalog import Norms
    from groundray.analysis.jobs import ANALYSES, made_by_all
    from groundray.analysis.report.document import as_json
    from groundray.analysis.request import AnalysisRequest
    from groundray.cli.reports import make_report

    if unknown := [name for name in analyses if name not in ANALYSES]:
        raise ValueError(
            f"expected analyses of {', '.join(ANALYSES)}, got {unknown[0]!r}"
            + config.did_you_mean(unknown[0], ANALYSES)
        )
    request = AnalysisRequest(checkpoint=_place(checkpoint), norms=Norms.at(str(norms)) if norms else None)
    names = [name for name in ANALYSES if name in analyses] if analyses else made_by_all(request)
    report, _ = make_report(
        names, request, lambda embedder, texts: embedder.embed(texts), lambda *_: None, frozenset(analyses)
    )
    return as_json(report)


def open_search(checkpoint: str | Path, images: str | Path, index: str | None = None, rerank: int = 200) -> Search:
    """Open a pool of images for search; `find(text, image, alpha, k)` returns the nearest images.

    Args:
        checkpoint: a model with the retrieval stage, as `path` of `open_model`; or a CLIP, SigLIP or ALIGN of
            transformers, by its folder, URL or name on a model hub.
        images: folder or URL of shards with images.
        index: folder or URL that keeps indexes, by default index/ beside the model, or ~/.cache/groundray/index for a
            model in MLflow or on a hub. A missing index is built in this process.
        rerank: number of the nearest images that the match map ranks again, if the model has the stage grounding; 0 for
            none, and no position features are made.

    Raises:
        FileNotFoundError, ValueError: the model cannot search, or there are no such images.
    """
    from groundray.image_search.index import FOLDER
    from groundray.image_search.query import Search
    from groundray.image_search.uses import keep_marked
    from groundray.storage.user_cache import user_cache
    from groundray.tracking.model_uris import locate

    located = locate(checkpoint, _tell)
    if located.model and index is None:
        index = str(user_cache() / FOLDER)
    search = Search.open(located.place, str(images), index, rerank=rerank)
    keep_marked(search.folders, search)
    return search


def _place(model: str | Path, exported: bool = True) -> str:
    """Return the path or URL of a model that is given so, or by MLflow's name."""
    from groundray.tracking.model_uris import locate

    return locate(model, _tell, exported=exported).place


def _tell(line: str) -> None:
    logging.getLogger(__name__).info("%s", line)
