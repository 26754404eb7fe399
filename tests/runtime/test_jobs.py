"""`ray job submit --working-dir .`: what is uploaded, and jobs on a cluster of their own, from command to end."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SmallWorld
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

ROOT = Path(__file__).parents[2]
MOST_BYTES = 5_000_000
PATIENCE_SECONDS = 120


def tree(folder: Path) -> Path:
    """A clone's code in a folder, with a file of settings beside it."""
    for name in ("groundray", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "mine.yaml").write_text("# settings\n")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("gitignore", [True, False], ids=["with .gitignore", "without"])
def test_an_upload_is_the_package_the_sweeps_and_what_is_beside_them(tmp_path: Path, gitignore: bool) -> None:
    folder = tree(tmp_path / "clone")
    code = files(folder) - {".rayignore", ".gitignore"}
    assert {"groundray/train.py", "groundray/data/plan.py", "groundray/config/presets/demo.yaml"} <= code
    assert {"sweeps/tau_sweep.py", "mine.yaml"} <= code
    for name in (
        *("data/scenes/text/train/0.parquet", "runs/demo/model/language/model.safetensors", "runs/.features/a.parquet"),
        *("mlruns/1/model.safetensors", "mlflow.db", "mlflow.db-wal", ".git/objects/pack/a.pack"),
        *(".venv/lib/torch.so", "venv/lib/torch.so", ".env/lib/torch.so", "train2017/000000000009.jpg", "objects.json"),
        *("groundray/__pycache__/train.pyc", "groundray/data/__pycache__/plan.pyc", "groundray.egg-info/SOURCES.txt"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(MOST_BYTES))  # Ray does not compress

    uploaded = tmp_path / "uploaded.zip"

    def upload(working_dir: str, excludes: list[str]) -> None:
        create_package(working_dir, uploaded, include_gitignore=gitignore, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(folder)}, include_gitignore=gitignore, upload_fn=upload)
    with zipfile.ZipFile(uploaded) as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == code
    assert uploaded.stat().st_size < MOST_BYTES


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that takes jobs, and a clone's folder to submit them from, whose data and runs are elsewhere."""

    environment: dict[str, str]
    clone: Path
    home: Path

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, as a person types it in the clone's folder."""
        return subprocess.run(
            ["ray", *words],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
        )

    def submit(self, name: str, *words: str, follow: bool = True) -> subprocess.CompletedProcess[str]:
        wait = [] if follow else ["--no-wait"]
        return self.ray("job", "submit", "--submission-id", name, *wait, "--working-dir", ".", "--", *words)

    def log(self, name: str) -> str:
        """Return the log of a job so far."""
        (file,) = self.home.parent.glob(f"ray/session_2*/logs/job-driver-{name}.log")
        return file.read_text()


@pytest.fixture(scope="module")
def cluster(world: SmallWorld) -> Iterator[Cluster]:
    """A cluster for this module, with its own ports and folders, separate from other clusters of the machine."""
    dashboard, client = free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="groundray.", dir="/tmp"))  # short: sockets' paths may have 107 characters
    home = folder / "home"
    home.mkdir()
    (home / "data").symlink_to(world.shards)
    (home / "source").symlink_to(world.source)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "GROUNDRAY_HOME": str(home),
    }
    words = [
        *("ray", "start", "--head", "--block", "--temp-dir", str(folder / "ray"), "--node-ip-address", "127.0.0.20"),
        *("--port", "0", "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)),
        *("--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", "2", "--object-store-memory", "200000000", "--disable-usage-stats"),
    ]
    log = folder / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None)
        assert head.poll() is None, log.read_text()
        yield Cluster(environment, tree(folder / "clone"), home)
    finally:
        head.send_signal(signal.SIGTERM)  # it ends its own processes with itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        head.kill()
        shutil.rmtree(folder, ignore_errors=True)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


def settings(epochs: int) -> str:
    """A file of settings whose paths are relative."""
    return (
        "run: {name: job}\nstages: [grounding]\n"
        "scaling: {num_workers: 1, threads: 1, cpus_per_worker: 0.5}\n"
        "model: {image_size: 112, trunk: {name: tiny, weights: none}, attention_heads: 4, attention_ffn: 64,\n"
        "  language: {name: tiny, weights: none, tokenizer: source/tokenizer, width: 32}}\n"
        f"grounding: {{train: data/captions/train, val: data/captions/val, epochs: {epochs}, batch_size: 8,\n"
        "  trains: {trunk: true, language_layers: all, query_key: true}}\n"
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_is_stopped_and_the_same_command_ends_it(cluster: Cluster) -> None:
    (cluster.clone / "mine.yaml").write_text(settings(epochs=20))
    # workers that had the installed package would write another file than the driver reads
    layout = cluster.clone / "groundray" / "training" / "layout.py"
    layout.write_text(layout.read_text().replace('"result.json"', '"outcome.json"'))
    train = ("python", "-m", "groundray.train", "--config", "mine.yaml")

    assert cluster.submit("first", *train, follow=False).returncode == 0
    until(lambda: "grounding  epoch 1/20  validation" in cluster.log("first"))
    stopped = cluster.ray("job", "stop", "first")
    assert stopped.returncode == 0
    assert "Job 'first' was stopped" in stopped.stdout
    folder = cluster.home / "runs" / "job"
    *_, last = cluster.log("first").splitlines()
    assert last == f"stopped: a checkpoint is written in {folder}; rerun the same command to resume"
    assert not (folder / "outcome.json").exists()

    submitted = cluster.submit("second", *train)
    assert submitted.returncode == 0, submitted.stdout
    assert "Job 'second' succeeded" in submitted.stdout
    told = cluster.log("second")
    assert "attempt 2  previous attempt stopped; repeating 0 steps (0 s)" in told
    assert "grounding  resumes after step" in told
    assert (folder / "outcome.json").exists()
    assert (folder / "model").is_dir()
    assert (cluster.home / "mlflow.db").exists()

    copies = [path for path in (cluster.home.parent / "ray").rglob("working_dir_files/*/") if path.is_dir()]
    assert copies
    for copy in copies:
        assert {path.name for path in copy.iterdir()} == {"groundray", "sweeps", "mine.yaml"}

    for text in (cluster.log("first"), told):
        first, *lines = text.splitlines()
        assert first.endswith("Runtime env is setting up.")  # Ray's
        assert lines[1:3] == [
            f"job  relative paths start from {cluster.home}",
            f"run  {folder}, starting 1 workers on Ray",
        ]
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)  # neither colours nor a bar that is drawn again
        ours = r"(grounding|attempt|  without_image(/\w+)?|  \w+_to_\w+|result|model|stopped:) "
        assert all(re.match(ours, line) for line in lines[3:]), text


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_fails_is_a_job_that_fails(cluster: Cluster) -> None:
    words = (
        "python",
        "-m",
        "groundray.train",
        "--config",
        "demo",
        "--stages",
        "language",
        "--language.train",
        "nowhere",
    )
    submitted = cluster.submit("wrong", *words)
    assert submitted.returncode == 1, submitted.stdout
    assert "Job 'wrong' failed" in submitted.stdout
    assert "failed with exit code 2" in submitted.stdout
    assert "Traceback" not in submitted.stdout
