"""Backup, restore and upgrade of MLflow as k8s/README.md has them, run word by word against a real PostgreSQL.

In the place of the cluster, `kubectl` is a script: what it would execute in a pod it runs here, on the test's own
database and folder of artifacts.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.thorough  # a server of PostgreSQL

ROOT = Path(__file__).parents[2]
README = (ROOT / "k8s" / "README.md").read_text()

KUBECTL = """\
#!/bin/bash
echo "$*" >> "$CALLS"
set -euo pipefail
if [[ $* == *" exec "* ]]; then
    words=("${@}")
    while [[ ${words[0]} != -- ]]; do words=("${words[@]:1}"); done
    words=("${words[@]:1}")
    exec "${words[@]/#\\/artifacts/$ARTIFACTS}"
elif [[ $* == "apply "*component=upgrade ]]; then
    exec "$PYTHON" -m mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
fi
"""

# a run, as MLflow's client writes it
LOG = """
import mlflow, os
client = mlflow.MlflowClient(os.environ["MLFLOW_BACKEND_STORE_URI"])
run = client.create_run(client.create_experiment("groundray"), run_name="first")
for step in range(20):
    client.log_metric(run.info.run_id, "loss", 1 / (step + 1), step=step)
"""
# the tables of MLflow's first version with a database
FIRST_TABLES = """
import os, sqlalchemy
from mlflow.store.tracking.dbmodels.initial_models import Base
Base.metadata.create_all(sqlalchemy.create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"]))
"""


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; Debian keeps them off the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    program = shutil.which("initdb")
    if not folders and program is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return folders[-1] if folders else Path(program).resolve().parent  # type: ignore[arg-type]


@dataclass(frozen=True)
class Platform:
    """An empty database for MLflow, a folder of artifacts, and a shell whose kubectl reaches both."""

    folder: Path
    environment: dict[str, str]

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True)

    def python(self, program: str) -> None:
        ended = subprocess.run([sys.executable, "-c", program], env=self.environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    def query(self, statement: str) -> str:
        words = ["psql", "--username=mlflow", "--dbname=mlflow", "--no-align", "--tuples-only", "--command", statement]
        ended = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def runs(self) -> str:
        """Return the name of each run with the number of its metric values."""
        return self.query("select name, count(*) from runs join metrics using (run_uuid) group by name")

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A PostgreSQL on a loopback port of its own, with the user that the manifests name."""
    programs = binaries()
    folder = Path(tempfile.mkdtemp(prefix="groundray-postgres-"))  # pytest closes its own folders to other accounts
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # PostgreSQL refuses to run as root
    account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if account:
        shutil.chown(folder, "nobody")
    data = folder / "data"
    start = [programs / "postgres", "-D", data, "-p", port, "-k", folder, "-c", "listen_addresses=127.0.0.1", "-F"]
    subprocess.run(
        [programs / "initdb", "-D", data, "--username=mlflow", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
        **account,
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log, cwd="/", **account)
    environment = {"PGHOST": "127.0.0.1", "PGPORT": port, "PATH": f"{programs}:{os.environ['PATH']}"}
    ready = [
        programs / "pg_isready",
        "--host=127.0.0.1",
        f"--port={port}",
        "--timeout=30",
        "--username=mlflow",
        "--quiet",
    ]
    try:
        while subprocess.run(ready).returncode:
            assert process.poll() is None, (folder / "log").read_text()
        yield environment
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def platform(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """A platform with a run and an artifact. Its tables were the first that MLflow ever had, and were upgraded."""
    folder = tmp_path_factory.mktemp("platform")
    environment = os.environ | server
    made = subprocess.run(["createdb", "--username=mlflow", "mlflow"], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (folder / "bin").mkdir()
    (folder / "bin" / "kubectl").write_text(KUBECTL)
    (folder / "bin" / "kubectl").chmod(0o755)
    environment |= {
        "PATH": f"{folder / 'bin'}:{server['PATH']}",
        "CALLS": str(folder / "calls"),
        "ARTIFACTS": str(folder / "artifacts"),
        "PYTHON": sys.executable,
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow@127.0.0.1:{server['PGPORT']}/mlflow",
    }
    platform = Platform(folder, environment)
    platform.python(FIRST_TABLES)
    upgraded = platform.shell(commands("A new version of MLflow", folder))
    assert upgraded.returncode == 0, upgraded.stderr
    platform.python(LOG)
    (platform.artifacts / "1" / "model").mkdir(parents=True)
    (platform.artifacts / "1" / "model" / "weights").write_bytes(bytes(range(256)))
    return platform


def commands(beginning: str, folder: Path) -> str:
    """Return the first block of commands after a text of the page, with the files of the backup in a folder."""
    (text,) = re.findall(rf"{beginning}.*?```sh\n(.*?)```", README, re.DOTALL)
    return re.sub(r"(?<=[<>] )(?=\S)", f"{folder}/", text)


def test_old_tables_are_upgraded_and_take_runs(platform: Platform) -> None:
    assert platform.runs() == "first|20"


def test_a_backup_restores_runs_and_artifacts(platform: Platform, tmp_path: Path) -> None:
    saved = platform.shell(commands("Back up both", tmp_path))
    assert saved.returncode == 0, saved.stderr

    platform.query("update runs set name = 'damaged'")
    platform.query("delete from metrics where step > 3")
    shutil.rmtree(platform.artifacts / "1")
    (platform.folder / "calls").unlink()
    restored = platform.shell(commands("Restore into", tmp_path))
    assert restored.returncode == 0, restored.stderr
    assert platform.runs() == "first|20"
    assert (platform.artifacts / "1" / "model" / "weights").read_bytes() == bytes(range(256))
    calls = (platform.folder / "calls").read_text().splitlines()
    (stop,) = (i for i, call in enumerate(calls) if "--replicas 0" in call)
    (load,) = (i for i, call in enumerate(calls) if "pg_restore" in call)
    (start,) = (i for i, call in enumerate(calls) if "--replicas 1" in call)
    assert stop < load < start, "the database is replaced while no server runs"


def test_a_backup_that_is_cut_replaces_nothing(platform: Platform, tmp_path: Path) -> None:
    assert platform.shell(commands("Back up both", tmp_path)).returncode == 0
    whole = (tmp_path / "mlflow.dump").read_bytes()
    (tmp_path / "mlflow.dump").write_bytes(whole[: len(whole) * 2 // 3])
    assert platform.shell(commands("Restore into", tmp_path)).returncode != 0
    assert platform.runs() == "first|20"


def test_the_upgrade_job_runs_that_command_on_the_servers_database() -> None:
    (job,) = yaml.safe_load_all((ROOT / "k8s" / "base" / "upgrade.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["mlflow", "db", "upgrade"]
    deployment = next(
        thing
        for thing in yaml.safe_load_all((ROOT / "k8s" / "base" / "mlflow.yaml").read_text())
        if thing["kind"] == "Deployment"
    )
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    stores = [entry["value"] for entry in server["env"] if entry["name"] == "MLFLOW_BACKEND_STORE_URI"]
    assert container["command"][3:] == stores
    assert container["image"] == server["image"]
