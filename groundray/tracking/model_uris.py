"""Finds the files of models by MLflow's names: registered models, logged models, and artifacts of runs.

    models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest     a version of a registered model
    models:/m-ID                                                      a logged model
    runs:/RUN_ID/PATH                                                 a logged model of a run, or its artifacts

An alias moves; the version or the logged model that it stands for does not (`FoundModel.uri`). Files in a folder of
this machine or in an object store are read where they are. Those that only MLflow's client reads, as of a server that
serves its artifacts, are downloaded once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from groundray.config import is_model_uri
from groundray.credentials import TRACKING_URI, redacted, without_secrets
from groundray.model import export
from groundray.storage.atomic import atomic_folder
from groundray.storage.folder import Folder
from groundray.storage.made_once import made_once
from groundray.storage.object_store import is_store
from groundray.storage.seals import Damaged, FileSeal
from groundray.storage.user_cache import user_cache
from groundray.tracking.mlflow_model import STREAM
from groundray.tracking.store import client_at, one_line, server_uri, store_exists

ANSWER_SECONDS = 15.0
DOWNLOADS = "models"  # in the user's cache
DOWNLOAD = ".download.json"  # of a downloaded model: what it is, and the seals of its files; hidden, as no part of it
FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or runs:/RUN_ID/PATH"
SHOWN = 5  # names in an error
# error codes of MLflow for what does not exist, and for an alias that does not
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class FoundModel:
    """A model that MLflow knows.

    Attributes:
        asked: the name that it was found by.
        uri: a name that stays with it: `models:/NAME/VERSION`, `models:/m-ID` or `runs:/RUN_ID/PATH`.
        location: where its files are: a path, or a URL.
        run_id: the MLflow run that logged it, None if none did.
        server: the tracking URI. It may have a password.
    """

    asked: str
    uri: str
    location: str
    run_id: str | None
    server: str


@dataclass(frozen=True)
class Located:
    """Where a model's files are.

    Attributes:
        place: a path or URL, as `Folder.at` opens it.
        model: what MLflow knows of it; None if it was given as a path or URL.
    """

    place: str
    model: FoundModel | None = None


def locate(
    place: str | Path,
    tell: Callable[[str], None],
    downloads: Folder | None = None,
    tracking_uri: str | None = None,
    exported: bool = True,
) -> Located:
    """Return where the files of a model are that is named by a path, a URL or one of MLflow's names. A path or URL is
    returned as it is.

    Args:
        tell: receives lines for the user.
        downloads: folder that keeps downloaded models (default: `models/` in the user's cache).
        tracking_uri: the setting `tracking.uri`.
        exported: expect a model of groundray; else any language model.

    Raises:
        ValueError, FileNotFoundError, OSError: MLflow has no such model, or its files cannot be used.
    """
    if not is_model_uri(str(place)):
        return Located(str(place))
    return locate_found(find_model(str(place), tracking_uri), tell, downloads, exported)


def locate_found(
    model: FoundModel, tell: Callable[[str], None], downloads: Folder | None = None, exported: bool = True
) -> Located:
    """Return where the files of a model are that MLflow knows. Arguments and errors as of `locate`."""
    found = place_of(model, downloads or user_cache() / DOWNLOADS, tell)
    if exported:
        check_export(model, found)
    else:
        found = language_folder(model, found)
    tell(f"model   {model.asked} is{'' if model.uri == model.asked else f' {model.uri},'} at {found}")
    return Located(found, model)


def find_model(uri: str, tracking_uri: str | None = None) -> FoundModel:
    """Return the model that MLflow has under a name.

    Args:
        tracking_uri: the setting `tracking.uri`.

    Raises:
        ValueError: it is not one of MLflow's names.
        FileNotFoundError: there is no such model; the message has what there is.
        OSError: the server does not answer within ANSWER_SECONDS.
    """
    find = _finder(uri)
    server = server_uri(tracking_uri)
    if not store_exists(server):
        raise FileNotFoundError(
            f"{uri}: MLflow has no store at {redacted(server)}: name the server that has the model in {TRACKING_URI}, "
            "or in tracking.uri for a run"
        )
    from mlflow.exceptions import MlflowException  # takes seconds, which are not the server's

    try:
        path, location, run_id = _answer(lambda: find(client_at(server)))
    except MlflowException as error:
        if error.error_code in UNKNOWN:
            raise FileNotFoundError(f"{uri}: {one_line(error)}, at {redacted(server)}") from None
        raise _unreachable(uri, server, one_line(error)) from None
    except TimeoutError as error:
        raise _unreachable(uri, server, str(error)) from None
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001  of a database or a connection, of any kind
        raise _unreachable(uri, server, one_line(error)) from None
    return FoundModel(uri, path, location, run_id, server)


def place_of(model: FoundModel, downloads: Folder, tell: Callable[[str], None]) -> str:
    """Return the path or URL of a model's files, after downloading them if only MLflow's client reads them.

    Args:
        downloads: folder that keeps downloaded models.
        tell: is called with a line for the user before a download and before a wait.

    Raises:
        FileNotFoundError: there are no files.
        Damaged: what was downloaded is not what groundray wrote.
        OSError: the files cannot be read or kept.
    """
    if (place := readable_place(model)) is None:
        return str(_downloaded(model, downloads, tell))
    folder = Folder.connect(place)
    if not folder.names():
        machine = " on this machine" if folder.local else ""
        raise FileNotFoundError(
            f"{model.asked}: expected its files in {folder}{machine}, found none: log the model again, or "
            + (
                "restore that folder"
                if not folder.local
                else "start the tracking server so that it serves its artifacts (--serve-artifacts), or use an "
                "object store for them"
            )
        )
    return str(folder)


def readable_place(model: FoundModel) -> str | None:
    """Return the path or URL where a model's files are read as they are; None if they are downloaded first, since only
    MLflow's client reads them."""
    local = _local_path(model.location)
    return model.location if local is None and is_store(model.location) else local


def check_export(model: FoundModel, place: str) -> None:
    """Raise FileNotFoundError if a model's files are no export of groundray."""
    folder = Folder.at(place)
    if not folder.exists(export.ABOUT):
        raise FileNotFoundError(
            f"{model.asked} is no model of groundray: expected {export.ABOUT} in its files, found "
            f"{_few(folder.names())}: give the model of a run, as runs:/RUN_ID/model"
        )


def language_folder(model: FoundModel, place: str) -> str:
    """Return the folder among a model's files that transformers or sentence-transformers can load.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Folder.at(place)
    for name in (".", STREAM, "model"):  # the others are those of MLflow's flavours
        inner = folder / name
        tokens = inner.exists("tokenizer.json") or inner.exists("vocab.txt") or inner.exists("tokenizer_config.json")
        if inner.exists(export.ABOUT) or inner.exists("modules.json") or (inner.exists("config.json") and tokens):
            return str(inner)
    raise FileNotFoundError(
        f"{model.asked}: expected a model of groundray or of sentence-transformers, or config.json, weights and a "
        f"tokenizer in one folder, found {_few(folder.names())}: log it with mlflow.sentence_transformers, or download "
        "it and put the tokenizer's files beside config.json"
    )


Found = tuple[str, str, str | None]  # the name that stays, the location, and the run's id


def _finder(uri: str) -> Callable[[Any], Found]:
    """Return the function that asks MLflow's client for a model.

    Raises:
        ValueError: the name has none of FORMS.
    """
    scheme, _, rest = uri.partition(":/")
    if scheme == "runs" and (match := re.fullmatch(r"([^/]+)/([^/].*?)/*", rest)):
        return partial(_of_run, run_id=match[1], path=match[2])
    if scheme == "models":
        if match := re.fullmatch(r"([^/]+)@([^/@]+)", rest):
            return partial(_of_alias, name=match[1], alias=match[2])
        if match := re.fullmatch(r"([^/]+)/(\d+|latest)", rest):
            return partial(_of_version, name=match[1], version=match[2])
        if re.fullmatch(r"m-[^/@]+", rest):
            return partial(_logged, model_id=rest)
    raise ValueError(f"expected {FORMS}, got {redacted(uri)}")


def _of_alias(client: Any, name: str, alias: str) -> Found:
    registered = client.get_registered_model(name)
    if alias not in registered.aliases:
        raise FileNotFoundError(f"models:/{name}@{alias}: {name} has no alias {alias}, but {_few(registered.aliases)}")
    return _of_version(client, name, str(registered.aliases[alias]))


def _of_version(client: Any, name: str, version: str) -> Found:
    if version == "latest":
        versions = [int(each.version) for each in client.get_registered_model(name).latest_versions]
        if not versions:
            raise FileNotFoundError(f"models:/{name}/latest: {name} has no versions")
        version = str(max(versions))
    found = client.get_model_version(name, version)
    if found.status not in (None, "READY"):
        raise FileNotFoundError(f"models:/{name}/{version}: expected a version that is ready, got {found.status}")
    location = client.get_model_version_download_uri(name, version)
    return f"models:/{name}/{version}", location, found.run_id or None


def _logged(client: Any, model_id: str) -> Found:
    model = client.get_logged_model(model_id)
    if model.status != "READY":
        raise FileNotFoundError(
            f"models:/{model_id}: expected a model that is uploaded whole, got status {model.status}: log it again"
        )
    return f"models:/{model_id}", model.artifact_location, model.source_run_id or None


def _of_run(client: Any, run_id: str, path: str) -> Found:
    run = client.get_run(run_id)
    name, _, inner = path.partition("/")
    if models := [model for model in _models_of(client, run, name) if model.status == "READY"]:
        newest = max(models, key=lambda model: model.creation_timestamp)
        uri, location, _ = _logged(client, newest.model_id)
        return (f"runs:/{run_id}/{path}", f"{location}/{inner}", run_id) if inner else (uri, location, run_id)
    return f"runs:/{run_id}/{path}", f"{run.info.artifact_uri.rstrip('/')}/{path}", run_id


def _models_of(client: Any, run: Any, name: str) -> list[Any]:
    """Return the logged models of a run with a name. A search by name alone is what every server has."""
    found: list[Any] = []
    token = None
    while token != "" and "'" not in name:
        page = client.search_logged_models([run.info.experiment_id], f"name = '{name}'", page_token=token)
        found += [model for model in page if model.source_run_id == run.info.run_id]
        token = page.token or ""
    return found


def _answer(ask: Callable[[], Found]) -> Found:
    """Return what a function returns that asks a server, in a thread.

    Raises:
        TimeoutError: it takes longer than ANSWER_SECONDS.
    """
    answers: list[Found] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001  raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name="groundray-find-model", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s")
    return answers[0]


def _unreachable(uri: str, server: str, reason: str) -> OSError:
    return OSError(
        f"{uri}: the tracking server at {redacted(server)} cannot be asked ({reason}): check {TRACKING_URI}, or "
        "tracking.uri of a run, and that the server runs"
    )


def _local_path(location: str) -> str | None:
    """Return the path of a location on this machine, None if it is elsewhere."""
    url = urlsplit(location)
    if url.scheme == "file":
        return unquote(url.path)
    return None if url.scheme else location


def _downloaded(model: FoundModel, downloads: Folder, tell: Callable[[str], None]) -> Folder:
    """Return the folder with a model's downloaded files. Of several processes, one downloads them."""
    key = hashlib.sha256(f"{without_secrets(model.server)} {model.location}".encode()).hexdigest()[:16]
    folder = downloads / key

    def read() -> None:
        record = folder.read_sealed(DOWNLOAD)
        for name, seal in record["files"].items():
            folder.verify(name, FileSeal.parse(seal), "it is downloaded again")

    def make() -> None:
        tell(f"model   downloading {model.uri} to {folder}")
        _download(model, folder)

    made_once(downloads.make(), key, (key,), read, make, tell)
    return folder


def _download(model: FoundModel, folder: Folder) -> None:
    """Download the files of a model to a folder, which is whole or not there."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    with atomic_folder(folder, DOWNLOAD) as new:
        beside = Path(new.path).parent if new.local else None
        with tempfile.TemporaryDirectory(dir=beside) as local:
            try:
                whole = download_artifacts(
                    artifact_uri=model.location.rstrip("/"), dst_path=local, tracking_uri=model.server
                )
            except Exception as error:  # noqa: BLE001  of a store or a connection, of any kind
                raise FileNotFoundError(
                    f"{model.asked}: its files at {redacted(model.location)} cannot be downloaded ({one_line(error)})"
                ) from None
            source = Folder.at(whole)
            if not source.files():
                raise FileNotFoundError(
                    f"{model.asked} has no files at {redacted(model.location)}: log the model again"
                )
            if source.exists(export.ABOUT):
                _verify(model, source)
            if new.local:
                for name in source.names():
                    Path(source.path, name).rename(Path(new.path, name))
            else:
                new.upload(Path(source.path))
        seals = {name: new.seal(name).as_json() for name in new.files()}
        new.write_sealed(DOWNLOAD, {"model": model.uri, "location": model.location, "files": seals})


def _verify(model: FoundModel, source: Folder) -> None:
    try:
        export.verify(str(source), export.about(str(source)))
    except Damaged as error:
        file = error.file.removeprefix(str(source)).lstrip("/")
        repair = "log the model again, as a rerun of its run's command does"
        raise Damaged(f"{redacted(model.location)}/{file}", error.reason, repair) from None


def _few(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "") or "none"
