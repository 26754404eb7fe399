"""MLflow's server and its runs: the client, the experiment, and a training run's MLflow run, found by the run's id.

The id is in the run's folder (`training/identity.py`) and in the tag `groundray.run_id`. A path finds no MLflow run: a
folder that is deleted and used again holds another run. No MLflow run of another id is changed or deleted.

Passwords of a server are taken from the environment and hidden in every message.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from groundray.config import Settings
from groundray.credentials import TRACKING_URI, redacted, without_secrets
from groundray.storage.folder import Folder
from groundray.tracking.description import FOLDER_TAG, origin_of
from groundray.training.identity import Identity

DEFAULT_URI = "sqlite:///mlflow.db"
ID_TAG, PARENT_TAG = "groundray.run_id", "groundray.sweep_id"
CHILD_TAG = "mlflow.parentRunId"
TRAINING_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development"
}  # MLflow's page then opens on runs and curves
MAX_METRICS = 999  # in one call, with a tag: limits of MLflow
MAX_PARAMETERS = 100


class Deleted(ValueError):
    """The experiment or the run was deleted in MLflow; the message has the repair."""


def uri_of(settings: Settings) -> str:
    """Return the tracking URI of a run, as `server_uri`."""
    return server_uri(settings.tracking.uri)


def server_uri(given: str | None = None) -> str:
    """Return the tracking URI that a setting gives, or else the environment, or the default. It means the same in every
    folder of this machine. It may have a password, if it comes from the environment: only MLflow's client gets it."""
    environment = os.environ.get(TRACKING_URI)
    if environment and given in (None, without_secrets(environment)):
        given = environment
    uri = given or DEFAULT_URI
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}:///{Path(_in_url(str(Path.cwd()))) / path}" if slashes and scheme == "sqlite" else uri


def written_uri(settings: Settings) -> str:
    """Return the tracking URI for settings that are written: without secrets. Where the environment has the same URI
    with them, `uri_of` gives that one."""
    return without_secrets(uri_of(settings))


def store_exists(uri: str) -> bool:
    """Return False if the runs are stored in a local file or folder that does not exist. Asking would create it."""
    url = urlsplit(uri)
    if url.scheme == "sqlite":
        return Path(_database(uri)).exists()
    if url.scheme in ("", "file"):  # a folder, as earlier versions of MLflow have
        return uri == "databricks" or Path(unquote(url.path) if url.scheme else uri).exists()
    return True


def _database(uri: str) -> str:
    """Return the path of the file of a URI of SQLite."""
    if "%" not in uri:
        return uri.partition(":///")[2].partition("?")[0]
    from sqlalchemy.engine import make_url  # whose versions differ in what they unquote

    return make_url(uri).database or ""


def _in_url(folder: str) -> str:
    """Return a folder as it stands in a URI of SQLite."""
    if not {"%", "?"} & {*folder}:
        return folder
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=folder).render_as_string().partition(":///")[2]


def client_of(settings: Settings) -> Any:
    """Return MLflow's client for a run."""
    return client_at(uri_of(settings))


def client_at(uri: str) -> Any:
    """Return MLflow's client for a tracking URI."""
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "1"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient  # takes seconds, so only a tracked run imports it, off the main thread

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it logs each table that it creates
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    return MlflowClient(uri)


def experiment_of(client: Any, settings: Settings, create: bool = True) -> str:
    """Return the id of the settings' experiment. If it does not exist, create it, or return an empty string.

    Raises:
        Deleted: it was deleted.
    """
    name = settings.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment and experiment.lifecycle_stage == "deleted":
        raise Deleted(
            f"tracking.experiment: the MLflow experiment {name} was deleted: restore it with "
            f"`{command_of(settings)} experiments restore -x {experiment.experiment_id}`, or use another: "
            "--tracking.experiment ANOTHER"
        )
    if experiment:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, tags=TRAINING_EXPERIMENT)) if create else ""


def command_of(settings: Settings) -> str:
    """Return the command `mlflow` for the settings' server, as it can be pasted into a shell."""
    return f"{TRACKING_URI}={shlex.quote(redacted(uri_of(settings)))} mlflow"


def find_run(client: Any, settings: Settings, experiment: str, run_id: str) -> str | None:
    """Return the id of the MLflow run that has a run's id, None if there is none.

    Two processes of one run may have created it at the same time, as a stopped trial and the sweep that closes its run.
    Then both use the oldest, and one that holds no metrics is deleted.

    Raises:
        Deleted: it was deleted.
    """
    from mlflow.entities import ViewType

    same = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run_id}'", ViewType.ALL)
    ordered = sorted(same, key=lambda run: (run.info.start_time, run.info.run_id))
    active = [run for run in ordered if run.info.lifecycle_stage == "active"]
    if ordered and not active:
        raise Deleted(
            f"the MLflow run of this run was deleted: restore it with `{command_of(settings)} runs restore --run-id "
            f"{ordered[0].info.run_id}`, or log to another experiment: --tracking.experiment ANOTHER"
        )
    for later in active[1:]:
        if not later.data.metrics:
            client.delete_run(later.info.run_id)
    return active[0].info.run_id if active else None


def adopted_run(client: Any, experiment: str, folder: Folder, settings: Settings) -> str | None:
    """Return the id of the MLflow run that an earlier version created for a folder, by its path; None if there is none.

    It must be of the same settings: an earlier version also logged a later run in the same folder to it.
    """
    ours = {name: str(value) for name, value in settings.identity().items()}
    token = None
    while token != "":
        page = client.search_runs([experiment], "tags.`mlflow.source.name` LIKE 'groundray.%'", page_token=token)
        for run in page:
            theirs = run.data.params
            same = all(theirs.get(name, value) == value for name, value in ours.items())
            if run.data.tags.get(FOLDER_TAG) == str(folder) and ID_TAG not in run.data.tags and same:
                return str(run.info.run_id)
        token = page.token or ""
    return None


def reopen(
    client: Any,
    experiment: str,
    settings: Settings,
    folder: Folder,
    run: Identity,
    source: str,
    known: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Return the id of the MLflow run of a run, set to running, with all parameters and tags; create it if needed."""
    from mlflow.entities import Param, RunTag

    run_id = find_run(client, settings, experiment, run.id)
    if run_id is None and run.adopted:
        run_id = adopted_run(client, experiment, folder, settings)
    own = {ID_TAG: run.id, **tags}
    if run_id is None:
        described = origin_of(folder) | {"mlflow.source.name": source}
        created = client.create_run(experiment, run_name=settings.run.name, tags={**described, **own})
        run_id = find_run(client, settings, experiment, run.id) or str(created.info.run_id)
    else:
        client.update_run(run_id, status="RUNNING")
    logged = client.get_run(run_id).data
    missing = [Param(name, str(value)) for name, value in known.items() if name not in logged.params]
    for start in range(0, len(missing), MAX_PARAMETERS):
        client.log_batch(run_id, params=missing[start : start + MAX_PARAMETERS])
    if changed := [RunTag(name, value) for name, value in own.items() if logged.tags.get(name) != value]:
        client.log_batch(run_id, tags=changed)
    if missing:
        client.log_text(run_id, settings.to_yaml(), "config.yaml")
    return run_id


def metric_name(name: str) -> str:
    """Return a metric's name with only the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception, without secrets."""
    line = (str(error).strip().splitlines() or [""])[0]
    return redacted(line if isinstance(error, Deleted) else f"{type(error).__name__}: {line}")
