"""The launcher files and scripts in cluster/: valid for Ray's launcher, and what they and their page say is there."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import botocore.session
import click
import jsonschema
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from conftest import SmallWorld
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli, drain_node

from groundray import config, train
from groundray.config.settings import AcceleratorType
from groundray.runtime.nodes import node_of
from groundray.runtime.train.resources import leaves_data_cpus

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CLOUDS = ("aws", "gcp")
LAUNCHERS = (*CLOUDS, "local")
SCRIPTS = tuple(sorted(CLUSTER.glob("*.sh")))
TEXTS = {path.name: path.read_text() for path in sorted(CLUSTER.iterdir()) if path.is_file()}
LOCK = dict(re.findall(r"^(\S+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
PLACEHOLDERS = {"BUCKET": "a-bucket", "PROJECT": "a-project"}
# of Compute Engine's Instance, and of what is below: the names that are used here
INSTANCE = {
    "": {"machineType", "disks", "serviceAccounts", "scheduling"},
    "disks": {"boot", "autoDelete", "initializeParams"},
    "initializeParams": {"sourceImage", "diskType", "diskSizeGb"},
    "serviceAccounts": {"email", "scopes"},
    "scheduling": {
        *("provisioningModel", "instanceTerminationAction", "onHostMaintenance"),
        *("automaticRestart", "preemptionNoticeDuration"),
    },
    "preemptionNoticeDuration": {"seconds"},
}
NODE_ID = "0123456789abcdef" * 3 + "01234567"
NOTICE_SECONDS = 90


@functools.cache
def written(name: str) -> dict[str, Any]:
    """A launcher file as it is."""
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def prepared(name: str) -> dict[str, Any]:
    """A launcher file as `ray up` reads it, with Ray's defaults below."""
    return prepare_config(written(name))


def node_types(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The head's node type, and those of the workers by name."""
    types = dict(prepared(name)["available_node_types"])
    return types.pop(written(name)["head_node_type"]), types


def closed(schema: Any) -> Any:
    """The schema with no key allowed that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    below = {key: closed(value) for key, value in schema.items()}
    return below | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else below


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_launcher_takes_it(name: str) -> None:
    validate_config(prepared(name))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_cluster_file_has_only_keys_that_ray_knows(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    mistyped = written(name) | {"provider": written(name)["provider"] | {"avaliability_zone": "x"}}
    jsonschema.validate(written(name), closed(schema))
    with pytest.raises(jsonschema.ValidationError, match="avaliability_zone"):
        jsonschema.validate(mistyped, closed(schema))


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_ec2_takes_the_machines(kind: str) -> None:
    model = botocore.session.get_session().get_service_model("ec2")
    machine = written("aws")["available_node_types"][kind]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(machine, model.operation_model("RunInstances").input_shape)
    assert not report.has_errors(), report.generate_report()
    assert machine["InstanceType"] in model.shape_for("InstanceType").enum


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_compute_engine_knows_the_machines_keys(kind: str) -> None:
    def check(value: Any, known: set[str]) -> None:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                assert set(one) <= known
                for key, below in one.items():
                    check(below, INSTANCE.get(key, set()))

    check(written("gcp")["available_node_types"][kind]["node_config"], INSTANCE[""])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_no_type_of_node_has_more_than_there_may_be(name: str) -> None:
    for kind in prepared(name)["available_node_types"].values():
        assert 0 <= kind["min_workers"] <= kind["max_workers"] <= prepared(name)["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_is_on_demand_and_trains_nothing_and_the_others_are_spot_and_none_when_idle(name: str) -> None:
    def is_spot(machine: dict[str, Any]) -> bool:
        market = machine.get("InstanceMarketOptions", {}).get("MarketType")
        return "spot" in (market, machine.get("scheduling", {}).get("provisioningModel", "").lower())

    head, workers = node_types(name)
    assert not is_spot(head["node_config"])
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert workers
    for worker in workers.values():
        assert is_spot(worker["node_config"])
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] == 0
    assert written(name)["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("name", CLOUDS)
def test_a_machine_holds_the_workers_of_the_paper_and_feeds_them(name: str) -> None:
    settings = config.load("paper")
    _, workers = node_types(name)
    (worker,) = workers.values()
    holds(worker, settings.scaling)


def holds(worker: dict[str, Any], scaling: config.Scaling) -> None:
    """Fail unless all workers of a run fit on the machines of a type, and as many on one as it has GPUs."""
    gpus, cpus = worker["resources"]["GPU"], worker["resources"]["CPU"]
    assert worker["max_workers"] * gpus == scaling.max_workers
    assert leaves_data_cpus(cpus, gpus, scaling.cpus_per_worker)


@pytest.mark.parametrize("name", CLOUDS)
def test_gpus_of_a_run_are_in_one_machine_of_one_type(name: str) -> None:
    """Between machines of this size a short step's gradients take longer than the other GPUs save."""
    _, workers = node_types(name)
    (worker,) = workers.values()
    assert worker["max_workers"] == 1
    node = node_of("", worker["resources"])
    assert node.gpu_types <= set(get_args(AcceleratorType))
    assert node.places(config.load("paper").scaling.cpus_per_worker, 1, "L4") == 4


@pytest.mark.parametrize("name", LAUNCHERS)
def test_exactly_the_files_that_setup_needs_are_copied(name: str) -> None:
    mounts = dict(written(name)["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all(remote == f"~/groundray/{local}" for remote, local in mounts.items())
    assert all((ROOT / local).exists() for local in mounts.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"groundray", "cluster", "Makefile", "pyproject.toml", "requirements.lock"}
    assert set(mounts.values()) == needed | {project["readme"], *project["license-files"]}
    assert written(name)["rsync_exclude"] == ["__pycache__"]  # one such as `data` would take groundray/data away


def test_every_node_has_the_locks_ray() -> None:
    assert LOCK["ray"] == ray.__version__  # of which the schema is
    recipe = (ROOT / "Makefile").read_text().split("\n.venv/.ready:")[1].split("\n\n")[0]
    assert "-r requirements.lock" in recipe
    assert "\nmake setup\n" in TEXTS["set-up-node.sh"]
    for name in LAUNCHERS:
        assert written(name)["setup_commands"] == ["bash ~/groundray/cluster/set-up-node.sh"]
        more = [*prepared(name)["head_setup_commands"][1:], *prepared(name)["worker_setup_commands"][1:]]
        for command in more:  # nothing that would put another version over the lock's
            assert "--constraint ~/groundray/requirements.lock" in command
    assert {"boto3", "botocore"} <= set(LOCK)  # Ray's launcher for AWS, here and on the head


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_start_with_the_autoscaler_on_the_head_and_the_watch_on_spot_workers(name: str) -> None:
    head, worker = (written(name)[f"{kind}_start_ray_commands"] for kind in ("head", "worker"))
    (started,) = [command for command in head if "ray start" in command]
    assert {"--head", "--port=6379", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= set(started.split())
    assert "dashboard-host" not in started  # its default is the loopback
    (joined,) = [command for command in worker if "ray start" in command]
    assert "--address=$RAY_HEAD_IP:6379" in joined.split()
    watch = [command for command in worker if "drain-on-notice.sh" in command]
    if name in CLOUDS:
        assert worker.index(*watch) > worker.index(joined)
        assert f"~/groundray/cluster/drain-on-notice.sh {name} $RAY_HEAD_IP:6379" in watch[0]
    else:
        assert not watch
    for command in (*head, *worker):
        known(command)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_that_can_be_called(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        checked = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def lines(name: str) -> list[str]:
    """The lines of a file, what is continued together, without the sign of a comment."""
    return [line.lstrip("# ") for line in TEXTS[name].replace("\\\n", " ").splitlines()]


def known(line: str) -> None:
    """Fail where a line names a command of Ray, a module or setting of groundray or a file here, and there is none."""
    for placeholder, value in PLACEHOLDERS.items():
        line = line.replace(placeholder, value)
    for path in re.findall(r"(?<![\w/])cluster/[\w./-]+\w", line):
        assert (ROOT / path).exists(), path
    for name, below in re.findall(r"(?:^|[;&|`]|: |-- )\s*ray ([a-z-]+)(?: (\w+))?", line):
        assert name in cli.commands, f"ray {name}"
        group = cli.commands[name]
        assert not isinstance(group, click.Group) or below in group.commands, f"ray {name} {below}"
    if (found := re.search(r"python -m groundray\.(\w+)(.*)", line)) and "--help" not in found[2]:
        assert (ROOT / "groundray" / f"{found[1]}.py").exists(), found[1]
        if found[1] == "train":
            settings_of(found[2])


def settings_of(words: str) -> config.Settings:
    """The settings that words of `python -m groundray.train` give."""
    given = [word for word in shlex.split(words.split(' "$@"')[0], comments=True) if word != "&"]
    options, overrides = train.build_parser().parse_known_args(given)
    return config.load(options.config, overrides)


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_and_options_exist(name: str) -> None:
    for line in lines(name):
        known(line)


def test_missing_files_and_options_are_detected() -> None:
    for wrong in (
        "ray upp cluster/aws.yaml",
        "ray job sumbit -- python",
        "ray up cluster/azure.yaml",
        "python -m groundray.trane --config photos",
    ):
        with pytest.raises(AssertionError):
            known(wrong)
    with pytest.raises(config.SettingsError):
        known("python -m groundray.train --config photos --scaling.workers 3")


def test_the_pages_run_fits_the_cluster_it_is_for() -> None:
    (line,) = [line for line in lines("README.md") if line.startswith("ray job submit")]
    settings = settings_of(line.split("python -m groundray.train")[1])
    _, workers = node_types("aws")
    (worker,) = workers.values()
    assert settings.scaling.use_gpu
    holds(worker, settings.scaling)
    assert settings.grounding
    assert all(
        place.startswith("s3://") for place in (settings.run.storage, settings.grounding.train, settings.grounding.val)
    )


def test_one_of_the_demos_two_workers_fits_on_a_local_node() -> None:
    script = TEXTS["local-multinode.sh"]
    (given,) = re.findall(r"python -m groundray\.train (--config .*)", script)
    scaling = settings_of(given).scaling
    each = [int(cpus) for cpus in re.findall(r"--num-cpus (\d+)", script)]
    assert each == [0, 1, 1]
    assert scaling.max_workers == 2
    assert scaling.cpus_per_worker <= 1 < 2 * scaling.cpus_per_worker
    assert leaves_data_cpus(sum(each), 2, scaling.cpus_per_worker)


@dataclass
class Metadata:
    """Both clouds' metadata services, as far as notice goes: who forgets a header gets nothing, as there."""

    noticed: bool = False
    looks: int = 0
    ends: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=NOTICE_SECONDS))

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        match method, path:
            case "PUT", "/latest/api/token":
                return (200, "a-token") if "X-aws-ec2-metadata-token-ttl-seconds" in headers else (400, "")
            case "GET", "/latest/meta-data/spot/instance-action":
                if headers.get("X-aws-ec2-metadata-token") != "a-token":
                    return 401, ""
                self.looks += 1
                notice = {"action": "terminate", "time": f"{self.ends:%Y-%m-%dT%H:%M:%SZ}"}
                return (200, json.dumps(notice)) if self.noticed else (404, "")
            case "GET", "/computeMetadata/v1/instance/preempted":
                if headers.get("Metadata-Flavor") != "Google":
                    return 403, ""
                self.looks += 1
                return 200, "TRUE" if self.noticed else "FALSE"
        return 404, ""


@dataclass
class Machine:
    """A worker's machine: its cloud's metadata, a raylet, and Ray's command line, which fails at first."""

    metadata: Metadata
    folder: Path
    port: int
    raylet: subprocess.Popen[bytes]
    address: str

    def watch(self, cloud: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "GCE_METADATA_HOST": f"127.0.0.1:{self.port}",
            "http_proxy": "http://127.0.0.1:9",  # not for metadata
        }
        words = [str(CLUSTER / "drain-on-notice.sh"), cloud, self.address, "0.1"]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def calls(self) -> list[list[str]]:
        """The words of each call of `ray`."""
        file = self.folder / "calls"
        return [shlex.split(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    metadata = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, text = metadata.answer(self.command, self.path, self.headers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    fake = tmp_path / "ray"
    fake.write_text(f'#!/usr/bin/env bash\necho "${{*@Q}}" >>{tmp_path}/calls\n(($(wc -l <{tmp_path}/calls) > 1))\n')
    fake.chmod(0o755)
    address = f"192.0.2.10:{server.server_port}"  # of no cluster of this machine
    with contextlib.ExitStack() as stack:
        raylets = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE)
            )  # ends with its input
            for words in (
                [f"--node_id={NODE_ID[::-1]}", f"--gcs-address={address}1"],  # another cluster's
                ["--dashboard", f"--gcs-address={address}"],
                [f"--node_id={NODE_ID}", f"--gcs-address={address}"],
            )
        ]
        try:
            yield Machine(metadata, tmp_path, server.server_port, raylets[-1], address)
        finally:
            for raylet in raylets:
                raylet.kill()
            server.shutdown()
            thread.join()
            server.server_close()


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_clouds_notice_drains_the_node(machine: Machine, cloud: str) -> None:
    watch = machine.watch(cloud)
    until(lambda: machine.metadata.looks > 2)
    assert not machine.calls
    machine.metadata.noticed = True
    told, _ = watch.communicate(timeout=20)
    assert watch.returncode == 0, told
    _, (command, *words) = machine.calls  # the first failed
    assert command == "drain-node"
    given = drain_node.make_context(command, words).params
    assert given["node_id"] == NODE_ID
    assert given["address"] == machine.address
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    notice = node_types("gcp")[1]["gpu"]["node_config"]["scheduling"]["preemptionNoticeDuration"]["seconds"]
    expected = NOTICE_SECONDS if cloud == "aws" else notice
    assert expected - 20 <= given["deadline_remaining_seconds"] <= expected


def test_a_person_gives_notice_too(machine: Machine) -> None:
    watch = machine.watch("now")
    assert watch.wait(20) == 0
    watch.communicate()
    assert len(machine.calls) == 2
    assert machine.metadata.looks == 0


def test_the_watch_ends_with_the_node(machine: Machine) -> None:
    watch = machine.watch("aws")
    until(lambda: machine.metadata.looks > 2)
    machine.raylet.kill()
    machine.raylet.wait()
    told, _ = watch.communicate(timeout=20)
    assert (watch.returncode, told) == (1, f"no Ray node of {machine.address} runs here\n")
    assert not machine.calls


# stand in for Ray's nodes, and for a run that Ray Train puts on two of them; both note how they were called and ended
FAKE_RAY = """#!/usr/bin/env bash
set -eu
temp=$(grep -oE -- '--temp-dir [^ ]+' <<<"$*" | cut -d ' ' -f 2)
mkdir -p "$temp/session_latest/logs/train"
echo "$temp" >>NOTES/folders
echo -n 127.0.0.10:4321 >"$temp/ray_current_cluster"
echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} $*" >>NOTES/nodes
trap 'echo "$$" >>NOTES/ended; exit' TERM
echo Ray runtime started.
while :; do sleep 0.05; done
"""
FAKE_PYTHON = """#!/usr/bin/env bash
set -eu
[[ $1 == -c ]] && exec REAL "$@"
echo "$RAY_ADDRESS $*" >>NOTES/runs
log=$(head -n 1 NOTES/folders)/session_latest/logs/train/ray-train-sys-controller-0.log
cat >"$log" <<'END'
{"message": "2: \\n- (ip=127.0.0.12, pid=5) world_rank=0, local_rank=0\\n- (ip=127.0.0.11, pid=6) world_rank=1, "}
END
trap 'echo term >>NOTES/signals; exit 143' TERM
touch NOTES/training
for _ in $(seq "${SECONDS_OF_TRAINING:-2}0"); do sleep 0.1; done
exit 7
"""


@dataclass
class Checkout:
    """A folder such as a clone after `make setup`, but for Ray and the training."""

    root: Path

    def start(self, *words: str, seconds: int = 2) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "cluster" / "local-multinode.sh"), *words],
            env=os.environ | {"SECONDS_OF_TRAINING": str(seconds), "RAY_ADDRESS": "192.0.2.1:6379"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # a shell that begins with SIGINT ignored, as all below a background job, cannot trap it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def noted(self, what: str) -> list[str]:
        file = self.root / what
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "cluster").symlink_to(CLUSTER)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in (("ray", FAKE_RAY), ("python", FAKE_PYTHON)):
        file = tmp_path / ".venv" / "bin" / name
        file.write_text(text.replace("NOTES", str(tmp_path)).replace("REAL", sys.executable))
        file.chmod(0o755)
    return Checkout(tmp_path)


@pytest.mark.thorough
def test_three_nodes_are_there_for_a_run_and_end_with_it(checkout: Checkout) -> None:
    script = checkout.start("--stages", "visual", "--run.name", "a name")
    told, _ = script.communicate(timeout=30)
    assert script.returncode == 7, told
    assert told.splitlines() == ["worker 0 runs on 127.0.0.12", "worker 1 runs on 127.0.0.11"]
    assert [re.findall(r"--head|--address \S+|--node-ip-address \S+", line) for line in checkout.noted("nodes")] == [
        ["--node-ip-address 127.0.0.10", "--head"],
        ["--node-ip-address 127.0.0.11", "--address 127.0.0.10:4321"],
        ["--node-ip-address 127.0.0.12", "--address 127.0.0.10:4321"],
    ]
    assert all(line.startswith("token 64 start --block") for line in checkout.noted("nodes"))
    (run,) = checkout.noted("runs")
    assert run.startswith("127.0.0.10:4321 -m groundray.train --config demo --run.name multinode")
    assert run.endswith(" --stages visual --run.name a name")
    assert len(checkout.noted("ended")) == len(checkout.noted("folders")) == 3
    assert not any(Path(folder).parent.exists() for folder in checkout.noted("folders"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_run_once(checkout: Checkout, number: int) -> None:
    script = checkout.start(seconds=30)
    until((checkout.root / "training").exists)
    os.killpg(script.pid, number)  # as a terminal does: to all that are not in a session of their own
    try:
        told, _ = script.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        script.terminate()
        told, _ = script.communicate()
        pytest.fail(f"the signal did not end it: {told}")
    assert script.returncode == 143, told
    assert checkout.noted("signals") == ["term"]
    assert not any(Path(folder).parent.exists() for folder in checkout.noted("folders"))


@pytest.mark.slow
def test_the_demo_runs_on_three_nodes_of_this_machine(world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "cluster").symlink_to(CLUSTER)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    words = world.settings(f"--run.storage={tmp_path}/runs", stages="grounding")
    ran = subprocess.run(
        [tmp_path / "cluster" / "local-multinode.sh", *words], capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    where = dict(re.findall(r"worker (\d) runs on (\S+)", ran.stdout))
    assert sorted(where) == ["0", "1"]
    assert sorted(where.values()) == ["127.0.0.11", "127.0.0.12"]
    assert (tmp_path / "runs" / "multinode" / "result.json").exists()
