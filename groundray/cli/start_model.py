"""The model that a run starts from, where `run.start_from` is MLflow's name of it.

An alias moves, and a run must resume from the weights with which it began. Therefore a run's settings have the version
or the logged model (`run.start_from`), what was given for it (`run.start_alias`), and where the files are
(`run.start_files`). The same command resumes the run with that version, wherever the alias is by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from groundray.config import Run, Settings, SettingsError, is_model_uri
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.tracking.model_uris import locate
from groundray.training import identity, layout


def with_start_model(
    settings: Settings,
    tell: Callable[[str], None],
    downloads: Folder | None = None,
    get_began: Callable[[], Run | None] | None = None,
) -> Settings:
    """Return the settings of a run with the version that MLflow's name of a model in `run.start_from` stands for, and
    the place of its files.

    Args:
        tell: receives lines for the user.
        downloads: folder that keeps a downloaded model (default: `.models/` in `run.storage`, where all workers of the
            run can read it).
        get_began: returns the section `run` with which a sweep began; None for a run, whose folder has it.

    Raises:
        SettingsError: there is no such model, or its files cannot be used; the message gives the repair.
    """
    run, folder = settings.run, layout.folder_of(settings)
    if run.start_from is None or not is_model_uri(run.start_from):
        return _with_run(settings, run.model_copy(update={"start_alias": None, "start_files": None}))
    try:
        Folder.connect(run.storage)
        began = get_began() if get_began else _began(folder)
        if began and run.start_from in (began.start_alias, began.start_from):
            pinned, alias, files = began.start_from, began.start_alias, began.start_files
            tell(f"start   {run.start_from} stays {pinned}, with which {folder} began")
        else:
            pinned, alias, files = run.start_from, None, None
        assert pinned is not None
        if not (files and Folder.at(files).exists(export.ABOUT)):
            at = downloads or Folder.at(run.storage) / layout.START_MODELS
            located = locate(pinned, tell, at, settings.tracking.uri)
            assert located.model is not None
            pinned, files = located.model.uri, located.place
            alias = alias or (run.start_from if run.start_from != pinned else None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"run.start_from: {error}") from None
    return _with_run(
        settings, run.model_copy(update={"start_from": pinned, "start_alias": alias, "start_files": files})
    )


def _began(folder: Folder) -> Run | None:
    """Return the section `run` of the settings with which a run began; None if there is no run, or it cannot be read,
    which the checks before a run report."""
    with contextlib.suppress(ValueError):
        recorded = identity.recorded(folder)
        return recorded.run if recorded else None
    return None


def _with_run(settings: Settings, run: Run) -> Settings:
    return settings.model_copy(update={"run": run})
