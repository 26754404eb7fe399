"""The environment of every test and of every process that a test starts, whoever runs them and wherever.

What a shell sets for groundray, or for a library or program that it uses, is not there; a test whose subject is such a
variable sets it itself. The home is an empty folder, without anyone's keys, tokens and settings.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

WORKER = "PYTEST_XDIST_WORKER"  # names a process of pytest-xdist, which has the environment of the one that started it
KEPT = {"GROUNDRAY_DEMO"}  # the folder of a demo whose results are tested
PREFIXES = (
    *("GROUNDRAY_", "RAY_", "TUNE_"),
    *("MLFLOW_", "_MLFLOW_", "DATABRICKS_", "WANDB_", "TENSORBOARD_", "OTEL_"),
    *(
        "AWS_",
        "BOTO_",
        "GOOGLE_",
        "GCLOUD_",
        "GCE_",
        "GCS_",
        "CLOUDSDK_",
        "CLOUD_STORAGE_",
        "STORAGE_EMULATOR_",
        "AZURE_",
    ),
    *("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_"),
    *("TORCH_", "TORCHELASTIC_", "PYTORCH_", "CUBLAS_", "NCCL_", "GLOO_"),
    *("KUBE", "SLURM_", "PG", "GIT_", "XDG_", "LC_", "UVICORN_", "FORWARDED_ALLOW_"),
)
NAMES = {
    *("LANG", "LANGUAGE", "TZ", "PYTHONIOENCODING", "PYTHONUTF8"),
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "BROWSER"),
    *("DISPLAY", "WAYLAND_DISPLAY", "NETRC", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
}


def known(shell: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of the tests.

    Args:
        shell: the environment that pytest was started in.
        folder: an empty folder with a short path, for the home, for temporary files, and for all that Ray writes.
    """
    kept = {name: value for name, value in shell.items() if name in KEPT or not _is_set_aside(name)}
    return kept | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HF_HUB_OFFLINE": "1",  # no test contacts a model hub
        "AWS_EC2_METADATA_DISABLED": "true",  # nor a cloud's machine for a key
        "RAY_TMPDIR": str(folder),  # with the address of a cluster that is someone else's in the usual one
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # git accepts this checkout, whoever owns it
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


def enter() -> Path | None:
    """Change this process to the environment of the tests.

    Returns:
        The new folder with the home, which the caller removes; None in a process of pytest-xdist, which has its own.
    """
    folder = None
    if WORKER not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="groundray-tests-", dir=_short_folder()))
        folder.chmod(0o755)  # the server of PostgreSQL, which has an account of its own, gets to its folder
        environment = known(os.environ, folder)
        # what pytest's `tmp_path` has is kept for a look at it
        environment.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # which remembers the folder of the shell
        (folder / "home").mkdir()
    os.umask(0o022)
    time.tzset()
    return folder


def leave(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _is_set_aside(name: str) -> bool:
    return name in NAMES or name.startswith(PREFIXES) or name.lower().endswith("_proxy")


def _short_folder() -> str | None:
    """Return the folder for temporary files, unless its path is too long for the sockets that Ray keeps below it."""
    return None if len(tempfile.gettempdir()) <= len("/var/tmp") else "/tmp"
