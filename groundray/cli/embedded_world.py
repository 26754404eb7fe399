"""The data of the demo, which a run draws where they are missing: once, and whole.

A run whose settings name parts of `data/scenes`, as the preset `demo` does, needs no `prepare` before it. Of several
processes that find the world missing, one draws it and the others wait. A path of the user's own is never drawn.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from groundray.config import Settings, SettingsError
from groundray.config.embedded_world import SHARED_WORLD, WORLD
from groundray.data.schema import INDEX, Dataset
from groundray.data.sources.scenes import KINDS, SPLITS, Scenes
from groundray.runtime.ray_address import given_address
from groundray.storage.atomic import find_missing, is_empty
from groundray.storage.folder import Folder
from groundray.storage.local_path import expanded
from groundray.storage.made_once import made_once

DATA_SETS = tuple(f"{kind}/{split}" for kind in KINDS for split in SPLITS)
TOKENIZER, NORMS = "source/tokenizer", "source/norms"
# 7,950 pictures of 8 ms each on a core of an AMD EPYC; in an object store each file takes requests of its own
ABOUT = {True: "about a minute on two cores", False: "some minutes in an object store"}


def with_embedded_world(settings: Settings, console: Console) -> Settings:
    """Return the settings of a run with the place of the embedded world, as far as they name parts of it. Draws it
    there if it is missing, after the other checks that need no data.

    Args:
        console: for a line that says so before it is drawn, and for progress.

    Raises:
        SettingsError: another data set, the storage or the cluster cannot be used; the message gives the repair.
    """
    try:
        place = missing_world(settings)
        if place is None:
            _tell_of_one_machine(settings, console)
            return settings
        if not _is_there(place):
            _check_the_rest(settings)
            _draw(place, console)
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from None
    return _at(settings, place)


def undrawn_world(settings: Settings) -> tuple[Settings, str | None, str | None]:
    """Return for a run that starts nothing: the settings as `with_embedded_world` returns them, a line that says what
    would be drawn first, if anything, and why it could not be."""
    line = problem = None
    try:
        place = missing_world(settings)
        if place is None:
            return settings, None, None
    except (OSError, ValueError) as error:
        return settings, None, str(error)
    try:
        if not _is_there(place):
            line = f"{place} is missing: the run draws the embedded world there first, {ABOUT[place.local]}"
            _check_the_rest(settings)
    except (OSError, ValueError) as error:
        problem = str(error)
    return _at(settings, place), line, problem


def missing_world(settings: Settings) -> Folder | None:
    """Return the folder in which the run's embedded world is, or is to be drawn; None if the settings name no part of
    it, or it is in `data/scenes` already."""
    if not _parts(settings) or _is_there(Folder.at(WORLD)):
        return None
    return _shared_place(settings) or Folder.at(WORLD)


def _shared_place(settings: Settings) -> Folder | None:
    """Return where a cluster's machines all see the world; None where it belongs in the working directory."""
    storage = settings.run.storage
    # elsewhere than under the working directory of this machine, which others may not see
    shared = given_address() and ("://" in storage or expanded(storage).is_absolute())
    return Folder.at(storage) / SHARED_WORLD if shared else None


def _tell_of_one_machine(settings: Settings, console: Console) -> None:
    """Print that a run on a cluster uses the world in this machine's working directory, if it does."""
    if _parts(settings) and (shared := _shared_place(settings)):
        console.print(
            f"data  {Folder.at(WORLD)} is used: every machine of the cluster must see it. If they do not, move it "
            f"away, and it is drawn in {shared}",
            soft_wrap=True,
        )


def _parts(settings: Settings) -> dict[str, str]:
    """Return the parts of the world that settings name, by the settings' dotted names."""
    named = {f"{stage}.{part}": getattr(settings.stage(stage), part) for stage in settings.stages for part in SPLITS}
    parts = {name: path for name, path in named.items() if path in {f"{WORLD}/{each}" for each in DATA_SETS}}
    if settings.model.language.tokenizer == f"{WORLD}/{TOKENIZER}":
        parts["model.language.tokenizer"] = f"{WORLD}/{TOKENIZER}"
    if settings.analysis.enabled and settings.analysis.norms == f"{WORLD}/{NORMS}":
        parts["analysis.norms"] = f"{WORLD}/{NORMS}"
    return parts


def _at(settings: Settings, place: Folder) -> Settings:
    """Return the settings with the world at a place."""
    if place == Folder.at(WORLD):
        return settings
    from groundray.config import changed

    return changed(settings, {name: f"{place}{path.removeprefix(WORLD)}" for name, path in _parts(settings).items()})


def _is_there(place: Folder) -> bool:
    """Return True if something is in a folder, which may be another world, or not whole because somebody deleted some
    of it: opening it tells. What is drawn is there whole or not at all."""
    if all(place.exists(f"{name}/{INDEX}") for name in DATA_SETS):
        return True
    find_missing(place)  # puts back what a killed `prepare --overwrite` had set aside
    return not is_empty(place)


def _check_the_rest(settings: Settings) -> None:
    """Check what a run needs besides the world, so that what cannot be used fails before it is drawn."""
    from groundray.runtime.train import launch  # imports torch and Ray
    from groundray.training import preflight

    preflight.check_storage(settings)
    preflight.check_model(settings)
    launch.check_cluster(settings)
    drawn = _parts(settings)
    for stage in settings.stages:
        for part in SPLITS:
            if f"{stage}.{part}" not in drawn:
                try:
                    Dataset.open(getattr(settings.stage(stage), part))
                except (OSError, ValueError) as error:
                    raise SettingsError(f"{stage}.{part}: {error}") from None


def _draw(place: Folder, console: Console) -> None:
    """Draw the world in a folder, or wait for the process that does."""
    from groundray.cli.preparation import add_options, prepare

    parser = argparse.ArgumentParser()
    Scenes.add_options(parser)
    add_options(parser, Scenes)
    options = parser.parse_args(["--out", str(place)])

    def read() -> None:
        if not _is_there(place):
            raise FileNotFoundError(str(place))

    def make() -> None:
        console.print(
            f"data  {place} is missing: drawing the embedded world there, {options.num_scenes + options.num_val:,} "
            f"scenes, {ABOUT[place.local]}"
        )
        prepare(Scenes(options), options, console, tell=lambda _: None, here=True)

    made_once(place.parent, place.name, [place.name], read, make, lambda line: console.print(f"data  {line}"))
