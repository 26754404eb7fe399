"""The image and the manifests in k8s/: each overlay is built once, and read as the API server and the operators do."""

from __future__ import annotations

import functools
import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from groundray import config, prepare, sweep, train

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu", "gpu", "gpu-machines", "gpu-rdma", "kueue")
KUBERNETES = "1.32"
DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text()
README = (ROOT / "k8s" / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
Object = dict[str, Any]


def build(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay."""
    return kustomized(f"overlays/{overlay}")


@functools.cache
def kustomized(folder: str) -> tuple[Object, ...]:
    """The objects of a folder of k8s/."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return tuple(yaml.load_all(built.stdout, yaml.CSafeLoader))


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return build(request.param)


@pytest.fixture
def jobs(objects: tuple[Object, ...]) -> list[Object]:
    found = of_kind(objects, "RayJob")
    assert {job["metadata"]["name"] for job in found} == {"train", "sweep"}
    return found


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [thing for thing in objects if thing["kind"] in kinds]


def name(thing: Object) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def names(objects: tuple[Object, ...], kind: str) -> set[str]:
    return {thing["metadata"]["name"] for thing in of_kind(objects, kind)}


def nodes(tree: Any) -> Iterator[Any]:
    """A tree and everything in it."""
    yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(below)


def pods(tree: Any) -> list[Object]:
    """Every pod specification in an object, whatever its kind."""
    return [node for node in nodes(tree) if isinstance(node, dict) and "containers" in node]


def containers(thing: Object) -> list[Object]:
    """Every container of an object, with the one that KubeRay puts beside the head where it scales the cluster."""
    own = [one for pod in pods(thing) for one in (*pod["containers"], *pod.get("initContainers", ()))]
    beside = [{"name": "autoscaler", **node["autoscalerOptions"]} for node in nodes(thing) if scales(node)]
    return own + beside


def claims(pod: Object) -> dict[str, str]:
    """The volume claims of a pod, by the name of the volume."""
    key = "persistentVolumeClaim"
    return {volume["name"]: volume[key]["claimName"] for volume in pod.get("volumes", ()) if key in volume}


def scales(node: Any) -> bool:
    return isinstance(node, dict) and bool(node.get("enableInTreeAutoscaling"))


# what the API server takes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_its_own_kinds(overlay: str) -> None:
    known = [thing for thing in build(overlay) if not re.match(r"(ray\.io|kueue\.x-k8s\.io)/", thing["apiVersion"])]
    assert {"Namespace", "Deployment", "StatefulSet", "NetworkPolicy", "Job"} <= {thing["kind"] for thing in known}
    for thing in known:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


def test_kuberay_takes_its_kinds(objects: tuple[Object, ...]) -> None:
    for kind in ("RayCluster", "RayJob", "RayService"):
        for thing in of_kind(objects, kind):
            errors = [f"{error.json_path}: {error.message}" for error in kuberay(kind).iter_errors(thing)]
            assert not errors, f"{name(thing)}: {errors}"


@functools.cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """Return a validator of a KubeRay kind against its definition, which refuses unknown fields."""
    file = ROOT.parent / "shared" / "schemas" / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's definitions are not there: {file}")
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Object) -> Object:
    """A definition's schema as JSON Schema, with unknown fields refused; by itself it would let them pass."""
    shut = dict(schema)
    if shut.pop("x-kubernetes-int-or-string", False):
        shut.pop("anyOf", None)
        shut["type"] = ["integer", "string"]
    if shut.pop("nullable", False):
        shut["type"] = [shut["type"], "null"]
    if "properties" in shut:
        shut["properties"] = {field: closed(below) for field, below in shut["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            shut.setdefault("additionalProperties", False)
    for below in ("items", "additionalProperties"):
        if isinstance(shut.get(below), dict):
            shut[below] = closed(shut[below])
    return shut


def test_definitions_are_closed() -> None:
    schema = {
        "properties": {
            "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"items": {"properties": {"name": {"type": "string", "nullable": True}}}},
        }
    }
    check = jsonschema.Draft202012Validator(closed(schema))
    assert check.is_valid({"port": 80, "labels": {"any": "thing"}, "list": [{"name": None}]})
    assert check.is_valid({"port": "http"})
    for wrong in ({"prot": 80}, {"port": 1.5}, {"labels": {"any": 1}}, {"list": [{"nmae": "x"}]}):
        assert not check.is_valid(wrong)


def test_everything_is_in_the_namespace_and_belongs_to_a_component(objects: tuple[Object, ...]) -> None:
    (namespace,) = names(objects, "Namespace")
    for thing in objects:
        assert thing["metadata"]["labels"][COMPONENT] in {"platform", "cluster", "train", "sweep", "search", "upgrade"}
        if thing["kind"] not in ("Namespace", "ResourceFlavor", "ClusterQueue"):
            assert thing["metadata"]["namespace"] == namespace, name(thing)


# what the pods may do, and what they need


def test_no_pod_is_root_or_may_become_it(objects: tuple[Object, ...]) -> None:
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for thing in objects:
        for pod in pods(thing):
            security = pod["securityContext"]
            assert security["runAsNonRoot"], name(thing)
            assert security["runAsUser"], name(thing)
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name(thing)
        for container in containers(thing):
            security = container["securityContext"]
            assert security == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name(thing)
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert "/tmp" in writable, name(thing)  # where Python, Ray and PostgreSQL put temporary files


def test_only_the_autoscaler_has_a_token_of_the_kubernetes_api(objects: tuple[Object, ...]) -> None:
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    for thing in objects:
        for pod in pods(thing):
            assert pod["automountServiceAccountToken"] is False, name(thing)
        mounted = {
            container["name"]: {mount["mountPath"] for mount in container["volumeMounts"]}
            for container in containers(thing)
        }
        assert {who for who, paths in mounted.items() if path in paths} == mounted.keys() & {"autoscaler"}, name(thing)
        for node in filter(scales, nodes(thing)):
            (volume,) = (
                v for v in node["headGroupSpec"]["template"]["spec"]["volumes"] if v["name"] == "kubernetes-api"
            )
            assert {next(iter(source)) for source in volume["projected"]["sources"]} == {
                "serviceAccountToken",
                "configMap",
                "downwardAPI",
            }


def test_every_container_says_what_it_needs_and_what_it_may_use(objects: tuple[Object, ...]) -> None:
    for thing in objects:
        for container in containers(thing):
            needs, may_use = container["resources"]["requests"], container["resources"]["limits"]
            assert needs.keys() == may_use.keys() >= {"cpu", "memory"}, f"{name(thing)}: {container['name']}"
            assert all(quantity(needs[key]) <= quantity(may_use[key]) for key in needs), name(thing)


def quantity(text: Any) -> float:
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def test_pods_outside_kuberay_have_probes(objects: tuple[Object, ...]) -> None:
    for thing in of_kind(objects, "Deployment", "StatefulSet"):
        for container in containers(thing):
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name(thing)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_node_can_be_drained_and_search_continues(overlay: str) -> None:
    """A budget never asks for as many pods as there are: the eviction of the last would wait for ever."""
    objects = build(overlay)
    budgets = {thing["metadata"]["name"]: thing["spec"] for thing in of_kind(objects, "PodDisruptionBudget")}
    replicas = served(objects)["args"]["replicas"]
    (service,) = of_kind(objects, "RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    if group["replicas"] == 1:
        assert not budgets
    else:
        assert budgets.keys() == {"search"}
        assert budgets["search"]["minAvailable"] < group["replicas"] <= replicas


def test_a_node_autoscaler_leaves_heads_alone() -> None:
    for thing in of_kind(build("gpu"), "RayCluster", "RayJob", "RayService"):
        (head,) = (node["headGroupSpec"] for node in nodes(thing) if isinstance(node, dict) and "headGroupSpec" in node)
        annotations = head["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


# who may talk to whom

OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
PODS = {
    "postgres": {"app.kubernetes.io/name": "postgres"},
    "mlflow": {"app.kubernetes.io/name": "mlflow"},
    "upgrade": {"app.kubernetes.io/name": "mlflow-upgrade"},
    "submitter": {"app.kubernetes.io/name": "submitter"},
    "ray": {"ray.io/cluster": "train", "ray.io/node-type": "worker"},
    "serve": {"ray.io/cluster": "search", "ray.io/node-type": "worker", "ray.io/serve": "true"},
    "other": {"app": "other"},
}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects an object with these labels, as Kubernetes defines it."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for term in selector.get("matchExpressions", ()):
        if term["operator"] == "Exists":
            if term["key"] not in labels:
                return False
        else:
            assert term["operator"] == "In", term
            if labels.get(term["key"]) not in term["values"]:
                return False
    return True


def allows(objects: tuple[Object, ...], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of the namespace open a TCP connection to another one's port."""

    def side(direction: str, peer_key: str, pod: dict[str, str], peer: dict[str, str]) -> bool:
        policies = [
            thing["spec"]
            for thing in of_kind(objects, "NetworkPolicy")
            if direction in thing["spec"]["policyTypes"] and selects(thing["spec"]["podSelector"], pod)
        ]
        assert policies, "a pod without a policy is open"
        for rule in (rule for spec in policies for rule in spec.get(direction.lower(), ())):
            ports = [entry["port"] for entry in rule.get("ports", ()) if entry.get("protocol", "TCP") == "TCP"]
            if rule.get("ports") and port not in ports:
                continue
            for entry in rule.get(peer_key, ()):
                if "podSelector" in entry and "namespaceSelector" not in entry and selects(entry["podSelector"], peer):
                    return True
        return False

    return side("Ingress", "from", target, source) and side("Egress", "to", source, target)


def test_pods_reach_what_they_need_and_nothing_else(objects: tuple[Object, ...]) -> None:
    for thing in of_kind(objects, "NetworkPolicy"):
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    ports = {"postgres": 5432, "mlflow": 5000, "dashboard": 8265, "gcs": 6379}
    allowed = {
        (source, target, port)
        for source in PODS
        for target in PODS
        for port in ports
        if source != target and allows(objects, PODS[source], PODS[target], ports[port])
    }
    ray = {(a, b, port) for a in ("ray", "serve") for b in ("ray", "serve") if a != b for port in ports}
    assert allowed == ray | {
        ("mlflow", "postgres", "postgres"),
        ("upgrade", "postgres", "postgres"),
        ("ray", "mlflow", "mlflow"),
        ("serve", "mlflow", "mlflow"),
        ("submitter", "ray", "dashboard"),
        ("submitter", "serve", "dashboard"),
    }


def test_pods_bear_the_labels_that_the_policies_know(objects: tuple[Object, ...]) -> None:
    key = "app.kubernetes.io/name"
    borne = {
        node["metadata"]["labels"][key]
        for node in nodes(list(objects))
        if isinstance(node, dict)
        and "containers" in node.get("spec", {})
        and key in node.get("metadata", {}).get("labels", {})
    }
    assert borne == {labels[key] for labels in PODS.values() if key in labels}


def test_the_way_out_of_the_cluster_leaves_out_the_metadata_of_the_machine(objects: tuple[Object, ...]) -> None:
    blocks = [
        node["ipBlock"]
        for node in nodes(of_kind(objects, "NetworkPolicy"))
        if isinstance(node, dict) and "ipBlock" in node
    ]
    assert {block["cidr"] for block in blocks} == {"0.0.0.0/0", "169.254.20.10/32"}
    assert all("169.254.0.0/16" in block["except"] for block in blocks if block["cidr"] == "0.0.0.0/0")


def test_only_a_namespace_that_is_allowed_searches(objects: tuple[Object, ...]) -> None:
    (rule,) = (thing["spec"] for thing in of_kind(objects, "NetworkPolicy") if thing["metadata"]["name"] == "search")
    assert selects(rule["podSelector"], PODS["serve"])
    assert rule["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] == {"groundray/search": "allowed"}
    assert "label namespace NAMESPACE groundray/search=allowed" in README


def test_no_service_becomes_a_setting(objects: tuple[Object, ...]) -> None:
    """Kubernetes tells pods of the service `mlflow` as MLFLOW_PORT, which MLflow reads as its own."""
    for thing in objects:
        assert all(pod["enableServiceLinks"] is False for pod in pods(thing)), name(thing)


# what is referred to is there


def test_no_secret_is_in_a_manifest(objects: tuple[Object, ...]) -> None:
    assert not of_kind(objects, "Secret")
    for thing in objects:
        for node in nodes(thing):
            if isinstance(node, dict) and re.search(r"PASSWORD|TOKEN|SECRET|KEY|CREDENTIAL", str(node.get("name"))):
                assert "value" not in node, f"{name(thing)}: {node}"
            if isinstance(node, str):
                assert not re.search(r"://[^/\s]*:[^/\s]*@", node), f"{name(thing)}: {node}"


def test_every_secret_is_made_by_the_readme(objects: tuple[Object, ...]) -> None:
    made = {
        (secret, key)
        for secret, rest in re.findall(r"create secret generic (\S+)((?:\\\n|[^\n])*)", README)
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }
    wanted = set()
    for node in nodes(list(objects)):
        if not isinstance(node, dict):
            continue
        if key := node.get("secretKeyRef"):
            wanted.add((key["name"], key["key"]))
        if (whole := node.get("secretRef")) and not whole.get("optional"):
            wanted |= {(whole["name"], "")}
        if auth := node.get("authOptions"):
            wanted.add((auth["secretName"], "auth_token"))
    assert wanted == {("postgres", "password"), ("ray-token", "auth_token")} <= made


def test_claims_config_maps_services_and_accounts_exist(objects: tuple[Object, ...]) -> None:
    for thing in objects:
        for pod in pods(thing):
            assert pod.get("serviceAccountName") is None
            assert set(claims(pod).values()) <= names(objects, "PersistentVolumeClaim"), name(thing)
            of_set = thing["spec"].get("volumeClaimTemplates", ())
            known = {volume["name"] for volume in pod["volumes"]} | {
                template["metadata"]["name"] for template in of_set
            }
            for container in pod["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= known, name(thing)
        for node in nodes(thing):
            if isinstance(node, dict) and "configMapRef" in node:
                assert node["configMapRef"]["name"] in names(objects, "ConfigMap")
    (database,) = of_kind(objects, "StatefulSet")
    assert database["spec"]["serviceName"] in names(objects, "Service")


def test_services_find_their_pods(objects: tuple[Object, ...]) -> None:
    own = of_kind(objects, "Deployment", "StatefulSet")
    for service in of_kind(objects, "Service"):
        (behind,) = (
            thing
            for thing in own
            if service["spec"]["selector"].items() <= thing["spec"]["template"]["metadata"]["labels"].items()
        )
        listening = {port["containerPort"] for one in containers(behind) for port in one["ports"]}
        assert {port["port"] for port in service["spec"]["ports"]} <= listening


def test_runs_find_mlflow_and_mlflow_its_database(objects: tuple[Object, ...]) -> None:
    (shared,) = of_kind(objects, "ConfigMap")
    tracking = urlsplit(shared["data"]["MLFLOW_TRACKING_URI"])
    assert tracking.hostname in names(objects, "Service")
    (server,) = (one for thing in of_kind(objects, "Deployment") for one in containers(thing))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in server["args"])
    assert tracking.port == int(options["port"])
    assert any(fnmatch(tracking.netloc, host) for host in options["allowed-hosts"].split(","))
    assert any(fnmatch("localhost:5000", host) for host in options["allowed-hosts"].split(","))
    assert options["artifacts-destination"] in {mount["mountPath"] for mount in server["volumeMounts"]}

    own = {variable["name"]: variable.get("value") for variable in server["env"]}
    (database,) = (one for thing in of_kind(objects, "StatefulSet") for one in containers(thing))
    there = {variable["name"]: variable.get("value") for variable in database["env"]}
    store = urlsplit(own["MLFLOW_BACKEND_STORE_URI"])
    assert store.hostname in names(objects, "Service")
    assert (store.username, store.path) == (there["POSTGRES_USER"], f"/{there['POSTGRES_DB']}")
    assert own.keys() >= {"PGPASSWORD"}


def test_ray_pods_share_the_data_and_the_settings(objects: tuple[Object, ...]) -> None:
    for thing in of_kind(objects, "RayCluster", "RayJob", "RayService"):
        ray = [one for pod in pods(thing) for one in pod["containers"] if one["name"] in ("head", "worker")]
        assert len(ray) >= 2
        for container in ray:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            mounts.pop("/dev/shm", None)  # which KubeRay adds where it is not
            assert mounts == {"/data": "data", "/tmp": "tmp", "/home/groundray": "home"}, name(thing)
            assert {"configMapRef": {"name": "groundray"}} in container["envFrom"], name(thing)


@pytest.mark.parametrize(("overlay", "mode"), [("cpu", "ReadWriteOnce"), ("gpu", "ReadWriteMany")])
def test_many_nodes_need_a_volume_for_many(overlay: str, mode: str) -> None:
    (claim,) = (one for one in of_kind(build(overlay), "PersistentVolumeClaim") if one["metadata"]["name"] == "data")
    assert claim["spec"]["accessModes"] == [mode]


# the commands


class Command(NamedTuple):
    """A Python module or script, and the words after it."""

    program: str
    words: list[str]


def commands(job: Object) -> list[Command]:
    """Return the commands that a job runs, in order, when it is retried."""
    shell, option, script = shlex.split(job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    script = re.sub(r"\$\(test -e \S+ && echo (\S+)\)", r"\1", script)
    found = []
    for words in (shlex.split(part) for part in script.split("&&")):
        assert words.pop(0) == "python"
        module = words[0] == "-m"
        found.append(Command(words[module], words[module + 1 :]))
    return found


def settings_of(command: Command) -> config.Settings:
    """The settings that a training run or a sweep would have. Refuses what the command itself would refuse."""
    if command.program.endswith(".py"):
        parser = sweep.build_parser(sweep.Defaults(space=("any",), metric="any"))
    else:
        parser = train.build_parser()
    options, rest = parser.parse_known_args(command.words)
    return config.load(options.config, rest)


def test_commands_exist_and_take_their_words(jobs: list[Object]) -> None:
    for job in jobs:
        preparing, working = commands(job)
        assert preparing.program == "groundray.prepare"
        prepared = prepare.build_parser().parse_args(preparing.words)
        settings = settings_of(working)
        if working.program.endswith(".py"):
            assert (ROOT / working.program).is_file(), working.program
        else:
            assert callable(importlib.import_module(working.program).main)
        for stage in settings.stages:  # in the image, a preset's data/ is /data
            assert Path("/", settings.stage(stage).train).is_relative_to(prepared.out)


def test_a_job_that_is_tried_again_goes_on(jobs: list[Object]) -> None:
    runs = set()
    for job in jobs:
        spec, (_, working) = job["spec"], commands(job)
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"]
        assert spec["ttlSecondsAfterFinished"] > 0
        assert {"--run.storage", "--run.name"} <= set(working.words), "a retry would begin anew"
        run = settings_of(working).run
        assert run.storage.startswith("/data/")
        if working.program.endswith(".py"):  # a sweep that has started resumes only with --resume
            (seen,) = re.findall(r"\$\(test -e (\S+) && echo --resume\)", spec["entrypoint"])
            definition = importlib.import_module("groundray.runtime.tune.spec").DEFINITION
            assert seen == f"{run.storage}/{run.name}/{definition}"
            assert spec["entrypoint"].endswith("'"), "the submitter would look, which has no volume"
        runs.add((run.storage, run.name))
    assert len(runs) == len(jobs)


def served(objects: tuple[Object, ...]) -> Object:
    """The one application of the search service."""
    (service,) = of_kind(objects, "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return application


def test_search_serves_what_the_run_made(objects: tuple[Object, ...], jobs: list[Object]) -> None:
    application = served(objects)
    (job,) = (job for job in jobs if job["metadata"]["name"] == "train")
    preparing, working = commands(job)
    run = settings_of(working).run
    assert application["args"]["checkpoint"] == f"{run.storage}/{run.name}/model"
    for place in ("images", "norms"):
        assert Path(application["args"][place]).is_relative_to(prepare.build_parser().parse_args(preparing.words).out)


def test_requests_are_limited_before_they_reach_a_replica(objects: tuple[Object, ...]) -> None:
    """In Serve's proxies, by the environment and by Serve's own options; and before them, in the ingress."""
    from ray.serve.schema import ServeDeploySchema  # brings Ray

    from groundray.image_search.http.request_body import BodyLimits
    from groundray.runtime.serve import proxy

    (service,) = of_kind(objects, "RayService")
    timeout = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["request_timeout_s"]
    ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (environment,) = (one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == "groundray")
    expected = proxy.environment(timeout)
    assert {name: environment[name] for name in expected} == expected

    (ingress,) = yaml.safe_load_all((ROOT / "k8s" / "ingress" / "ingress.yaml").read_text())
    kubernetes_validate.validate(ingress, KUBERNETES, strict=True)
    limits = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    most = int(limits["proxy-body-size"].removesuffix("m")) * 2**20
    assert BodyLimits().max_bytes <= most < 1.2 * BodyLimits().max_bytes
    assert int(limits["proxy-read-timeout"]) > timeout, "a client gets the service's own answer"
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] in served(objects)["args"]["hosts"]
    assert backend["port"]["number"] == 8000


def test_search_can_be_built_and_has_room(objects: tuple[Object, ...]) -> None:
    application = served(objects)
    assert application.keys() == {"name", "route_prefix", "import_path", "args"}  # Serve takes any other in silence
    module, _, builder = application["import_path"].partition(":")
    serving = importlib.import_module(module)
    arguments = serving.Arguments.model_validate(application["args"])
    deployment = getattr(serving, builder)(arguments)._bound_deployment
    assert deployment.name == "search"
    (service,) = (one["spec"]["rayClusterConfig"] for one in of_kind(objects, "RayService"))
    (group,) = service["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert arguments.replicas * arguments.cpus <= group["replicas"] * quantity(worker["resources"]["limits"]["cpu"])


# the clusters


class Room(NamedTuple):
    """The resources of a Ray node, and the initial number of nodes."""

    cpus: float
    gpus: int
    nodes: int


def room(cluster: Object) -> list[Room]:
    """The nodes of a cluster that are there when its job starts, as `ray start` is told by KubeRay."""
    groups = [{**cluster["headGroupSpec"], "replicas": 1}, *cluster["workerGroupSpecs"]]
    found = []
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = float(group["rayStartParams"].get("num-cpus", quantity(limits["cpu"])))
        found.append(Room(cpus, int(limits.get("nvidia.com/gpu", 0)), group["replicas"]))
    return found


def test_a_cluster_holds_the_run_that_starts_on_it(jobs: list[Object]) -> None:
    from groundray.runtime.nodes import Node  # brings Ray
    from groundray.runtime.train.resources import Resources  # and torch

    for job in jobs:
        scaling, there = settings_of(commands(job)[-1]).scaling, room(job["spec"]["rayClusterSpec"])
        Resources(
            workers=scaling.min_workers,
            worker_cpus=scaling.cpus_per_worker,
            gpus=scaling.min_workers if scaling.use_gpu else 0,
            nodes=[Node("", one.cpus, one.gpus) for one in there for _ in range(one.nodes)],
            where=name(job),
        ).check()


def test_one_cluster_is_described_once(objects: tuple[Object, ...], jobs: list[Object]) -> None:
    (cluster,) = (one["spec"] for one in of_kind(objects, "RayCluster"))
    (service,) = (one["spec"]["rayClusterConfig"] for one in of_kind(objects, "RayService"))
    for job in jobs:
        if QUEUE not in job["metadata"]["labels"]:
            assert job["spec"]["rayClusterSpec"] == cluster, name(job)
    (plain,) = (group["template"] for group in cluster["workerGroupSpecs"] if group["groupName"] == "cpu")
    assert service["workerGroupSpecs"][0]["template"] == plain
    assert all(service[key] == cluster[key] for key in ("rayVersion", "authOptions", "headGroupSpec"))


def test_only_who_has_the_token_may_use_ray(objects: tuple[Object, ...]) -> None:
    clusters = [node for node in nodes(list(objects)) if isinstance(node, dict) and "headGroupSpec" in node]
    assert len(clusters) == 4
    assert all(cluster["authOptions"]["mode"] == "token" for cluster in clusters)


def test_a_worker_that_is_evicted_has_time_to_give_notice(objects: tuple[Object, ...]) -> None:
    from ray.scripts.scripts import drain_node

    groups = [node for node in nodes(list(objects)) if isinstance(node, dict) and "groupName" in node]
    assert groups
    for pod in (group["template"]["spec"] for group in groups):
        *shell, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        draining, waiting = (shlex.split(part) for part in script.split("&&"))
        assert shell == ["sh", "-c"]
        assert draining[0] == "timeout"
        assert draining[2:4] == ["ray", "drain-node"]
        assert drain_node.make_context("drain-node", draining[4:]).params["deadline_remaining_seconds"] > 0
        assert waiting[0] == "sleep"
        assert int(draining[1]) + int(waiting[1]) < pod["terminationGracePeriodSeconds"]


def test_gpu_workers_grow_and_run_on_spot_nodes() -> None:
    (cluster,) = (one["spec"] for one in of_kind(build("gpu"), "RayCluster"))
    gpu = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert cluster["enableInTreeAutoscaling"]
    assert 1 <= gpu["minReplicas"] <= gpu["replicas"] < gpu["maxReplicas"]
    tolerated = {toleration["key"] for toleration in gpu["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} == tolerated
    assert "tolerations" not in cluster["headGroupSpec"]["template"]["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def gpu_pod(overlay: str) -> Object:
    """The pod of the workers with GPUs."""
    (cluster,) = (one["spec"] for one in of_kind(build(overlay), "RayCluster"))
    (group,) = (group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    return group["template"]["spec"]


@pytest.mark.parametrize("overlay", ["gpu-machines", "gpu-rdma"])
def test_a_pod_has_all_gpus_of_a_machine_and_a_run_takes_whole_machines(overlay: str) -> None:
    (worker,) = gpu_pod(overlay)["containers"]
    gpus = worker["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == 8
    (job,) = (job for job in of_kind(build(overlay), "RayJob") if job["metadata"]["name"] == "train")
    settings = settings_of(commands(job)[-1])
    assert settings.scaling.use_gpu
    assert settings.worker_counts == (gpus, 2 * gpus, 4 * gpus)


@pytest.mark.parametrize("overlay", ["gpu-machines", "gpu-rdma"])
def test_shared_memory_holds_rays_objects_and_nccls_buffers(overlay: str) -> None:
    from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION

    pod = gpu_pod(overlay)
    (worker,) = pod["containers"]
    (name,) = (mount["name"] for mount in worker["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    (volume,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == name)
    assert volume["medium"] == "Memory"
    memory, shared = quantity(worker["resources"]["limits"]["memory"]), quantity(volume["sizeLimit"])
    assert DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory + 2**30 * 8 < shared < memory / 2


def test_pods_with_rdma_do_not_fall_back_to_tcp() -> None:
    pod = gpu_pod("gpu-rdma")
    (worker,) = pod["containers"]
    resources = worker["resources"]
    (device,) = (key for key in resources["limits"] if key.startswith("rdma/"))
    assert resources["requests"][device] == resources["limits"][device] == 1
    assert {"name": "NCCL_NET", "value": "IB"} in worker["env"]
    assert "libibverbs1" in DOCKERFILE
    assert "env" not in gpu_pod("gpu-machines")["containers"][0]


@pytest.mark.parametrize(("limit", "status"), [("unlimited", 0), ("8192", 1)])
def test_a_pod_with_rdma_starts_only_where_memory_can_be_locked(limit: str, status: int) -> None:
    (first,) = gpu_pod("gpu-rdma")["initContainers"]
    *shell, script = first["command"]
    ran = subprocess.run([*shell, f"ulimit() {{ echo {limit}; }}; {script}"], capture_output=True, text=True)
    assert ran.returncode == status, ran.stderr
    assert ran.stdout.startswith("locked memory: expected unlimited, got 8192 KiB: on the node" if status else "")


def test_a_queued_job_is_of_fixed_size_and_fits_its_queue() -> None:
    objects = build("kueue")
    (queue,) = of_kind(objects, "LocalQueue")
    (shared,) = of_kind(objects, "ClusterQueue")
    assert queue["spec"]["clusterQueue"] == shared["metadata"]["name"]
    (group,) = shared["spec"]["resourceGroups"]
    assert {flavor["name"] for flavor in group["flavors"]} <= names(objects, "ResourceFlavor")
    assert shared["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] in names(
        objects, "Namespace"
    )
    quota = {one["name"]: quantity(one["nominalQuota"]) for one in group["flavors"][0]["resources"]}
    assert set(group["coveredResources"]) == quota.keys()
    for job in of_kind(objects, "RayJob"):
        assert job["metadata"]["labels"][QUEUE] == queue["metadata"]["name"]
        cluster = job["spec"]["rayClusterSpec"]
        assert not cluster.get("enableInTreeAutoscaling")
        groups = cluster["workerGroupSpecs"]
        assert all(one["minReplicas"] == one["replicas"] == one["maxReplicas"] for one in groups)
        gang = [(1, job["spec"]["submitterPodTemplate"]), (1, cluster["headGroupSpec"]["template"])]
        gang += [(one["replicas"], one["template"]) for one in groups]
        asked = dict.fromkeys(quota, 0.0)
        for count, template in gang:
            for key, amount in template["spec"]["containers"][0]["resources"]["requests"].items():
                asked[key] += count * quantity(amount)
        assert all(asked[key] <= quota[key] for key in quota), f"{name(job)} asks for {asked}"


# metrics, for Prometheus and Grafana


METRICS_PORT = 8080  # KubeRay names it `metrics`, on every Ray container that has no port of this name
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}  # the operator's label of its pods
# of the operator's PodMonitor (0.87): what ours uses, with the fields' types, and nothing else
POD_MONITOR = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "additionalProperties": False,
    "properties": {
        "selector": {"type": "object"},
        "podTargetLabels": {"type": "array", "items": {"type": "string"}},
        "podMetricsEndpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["port"],
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "interval": {"type": "string", "pattern": r"^[1-9][0-9]*(ms|s|m)$"},
                },
            },
        },
    },
}


def dashboard() -> Object:
    """The dashboard, as Grafana's sidecar finds it."""
    (holder,) = (one for one in of_kind(kustomized("monitoring"), "ConfigMap"))
    assert holder["metadata"]["labels"]["grafana_dashboard"] == "1"
    ((file, text),) = holder["data"].items()
    assert file.endswith(".json")
    return json.loads(text)


def test_kubernetes_and_the_prometheus_operator_take_what_monitors(objects: tuple[Object, ...]) -> None:
    monitoring = kustomized("monitoring")
    assert {thing["kind"] for thing in monitoring} == {"ConfigMap", "NetworkPolicy", "PodMonitor"}
    (namespace,) = names(objects, "Namespace")
    assert {thing["metadata"]["namespace"] for thing in monitoring} == {namespace}
    assert not {name(thing) for thing in monitoring} & {name(thing) for thing in objects}
    for thing in monitoring:
        if thing["kind"] == "PodMonitor":
            assert thing["apiVersion"] == "monitoring.coreos.com/v1"
            jsonschema.validate(thing["spec"], POD_MONITOR)
        else:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)


def test_prometheus_reads_the_metrics_of_ray_pods_and_of_no_others(objects: tuple[Object, ...]) -> None:
    (monitor,) = (thing["spec"] for thing in of_kind(kustomized("monitoring"), "PodMonitor"))
    selected = {who for who, labels in PODS.items() if selects(monitor["selector"], labels)}
    assert selected == {"ray", "serve"}
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]
    for node in nodes(list(objects)):  # no other port or argument takes the place of KubeRay's default
        if isinstance(node, dict) and "rayStartParams" in node:
            assert "metrics-export-port" not in node["rayStartParams"]
            (container, *_) = node["template"]["spec"]["containers"]
            assert all(
                port["name"] != "metrics" and port["containerPort"] != METRICS_PORT
                for port in container.get("ports", ())
            )

    (policy,) = (thing["spec"] for thing in of_kind(kustomized("monitoring"), "NetworkPolicy"))
    assert {who for who, labels in PODS.items() if selects(policy["podSelector"], labels)} == selected
    ((rule,), (peer,)) = policy["ingress"], policy["ingress"][0]["from"]
    assert [entry["port"] for entry in rule["ports"]] == [METRICS_PORT]
    assert peer["namespaceSelector"] == {}
    assert selects(peer["podSelector"], PROMETHEUS)
    assert not any(selects(peer["podSelector"], labels) for labels in PODS.values())


def test_the_dashboard_queries_metrics_and_tags_that_there_are() -> None:
    from ray.dashboard.modules.metrics.dashboards.train_dashboard_panels import GPU_UTILIZATION_PANEL
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    from groundray.runtime.train.gauges import GAUGES, TAGS

    tags = {f"ray_{gauge}": {*TAGS, one.tag} - {""} for gauge, one in GAUGES.items()}
    of_node = {"instance"}  # Prometheus's own label of a target
    of_gpu = of_node | (set(re.findall(r"\b(Gpu\w+)=", GPU_UTILIZATION_PANEL.targets[0].expr)))
    tags |= {f"ray_{gauge}": of_gpu if "gpu" in gauge or "gram" in gauge else of_node for gauge in METRICS_GAUGES}
    queried = set()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            metrics, labels = names_of(target["expr"])
            assert metrics, panel["title"]
            assert metrics <= tags.keys(), panel["title"]
            assert all(labels <= tags[metric] for metric in metrics), panel["title"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, "a label that the query drops"
            queried |= metrics
    assert {f"ray_{gauge}" for gauge in GAUGES} - queried == {"ray_groundray_epoch"}


def names_of(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels of a PromQL query."""
    labels = set(re.findall(r"(\w+)\s*(?:=~|=|!=|!~)", " ".join(re.findall(r"{([^}]*)}", query))))
    for grouping in re.findall(r"\bby \(([^)]*)\)", query):
        labels |= {label.strip() for label in grouping.split(",")}
    rest = re.sub(r"{[^}]*}|\bby \([^)]*\)", "", query)
    functions = set(re.findall(r"([a-z_]+)\s*\(", rest))
    return set(re.findall(r"[A-Za-z_:][\w:]*", rest)) - functions, labels


def test_names_of_a_query() -> None:
    query = 'max by (run, GpuIndex) (one:total{run=~"$run", part!="x"} / two_bytes) * 1024 + rate(three{a="b"}[5m])'
    metrics, labels = names_of(query.replace("[5m]", ""))
    assert metrics == {"one:total", "two_bytes", "three"}
    assert labels == {"run", "GpuIndex", "part", "a"}


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "run"}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["run"]["query"]["query"] == "label_values(ray_groundray_step, run)"
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert all(x < 24 for x, _ in cells), "Grafana has 24 columns"
    for panel in panels:
        assert panel["datasource"] == source
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables.keys()


# the image, and what agrees with it


def pinned() -> dict[str, str]:
    """The versions in requirements.lock, by package."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {line.split("==")[0]: line.split("==")[1].split(" ")[0] for line in lines if "==" in line}


def test_every_package_is_locked_by_hash() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"(?m)^(?=\S)", text)[1:]
    assert {re.split("==", entry)[0] for entry in entries} == pinned().keys()
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_ray_is_of_one_version(objects: tuple[Object, ...]) -> None:
    told = {node["rayVersion"] for node in nodes(list(objects)) if isinstance(node, dict) and "rayVersion" in node}
    assert told == {pinned()["ray"]}


def test_one_image_of_this_version(objects: tuple[Object, ...]) -> None:
    images = {container["image"] for thing in objects for container in containers(thing) if "image" in container}
    (own,) = (image for image in images if "groundray" in image)
    assert own.rpartition(":")[2] == PROJECT["version"]
    others = images - {own} | set(re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert len(others) == 2
    assert all(re.search(r":[\d.]+[-\w]*@sha256:[0-9a-f]{64}$", image) for image in others), "an image without a digest"
    tags = set(re.findall(r"groundray:([\w.]+)", DOCKERFILE + README))
    assert tags == {PROJECT["version"]}


def test_the_image_has_a_python_and_the_packages_that_groundray_needs() -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=python:([\d.]+)-slim-\w+@\S+$", DOCKERFILE, re.MULTILINE)
    assert base in SpecifierSet(PROJECT["requires-python"])
    extras = re.findall(r"--extra (\w+)", DOCKERFILE)
    assert "dev" not in extras
    needed = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    locked = pinned()
    for requirement in map(Requirement, needed):
        assert requirement.name in locked, f"{requirement.name} is not in requirements.lock: run make lock"
        assert requirement.specifier.contains(locked[requirement.name])
    assert "--constraint requirements.lock" in DOCKERFILE


def test_the_image_has_the_driver_of_the_database(objects: tuple[Object, ...]) -> None:
    """SQLAlchemy takes psycopg for postgresql://, from 2.1 on."""
    (server,) = (one for thing in of_kind(objects, "Deployment") for one in containers(thing))
    (store,) = (one["value"] for one in server["env"] if one["name"] == "MLFLOW_BACKEND_STORE_URI")
    assert store.startswith("postgresql://")
    assert tuple(map(int, pinned()["sqlalchemy"].split(".")[:2])) >= (2, 1)
    extras = PROJECT["optional-dependencies"]
    assert any(Requirement(line).name == "psycopg" for line in extras["postgres"])
    assert "--extra postgres" in DOCKERFILE


def test_the_image_has_the_compiler_of_triton() -> None:
    assert re.search(r"apt-get install [^&]*\bg\+\+", re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[-1])


def test_the_image_is_built_of_what_reaches_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    assert copied == kept
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= kept


def test_the_image_is_not_root_and_names_no_index() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    (user,) = re.findall(r"^USER (\d+):\d+$", stages[-1], re.MULTILINE)
    assert int(user) > 0
    assert "://" not in DOCKERFILE
    assert re.search(r"^ARG PIP_INDEX_URL$", DOCKERFILE, re.MULTILINE), "an argument without a default"


# the page


def shell_lines() -> list[str]:
    """The commands on the page."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_page_names_what_there_is() -> None:
    objects = build("gpu")
    components = {thing["metadata"]["labels"][COMPONENT] for thing in objects}
    lines = shell_lines()
    folders = {word for line in lines for word in re.findall(r"(?:-k|--file|-f) (k8s/\S+)", line)}
    assert {"k8s/overlays/cpu", "k8s/Dockerfile"} <= folders
    assert all((ROOT / folder).exists() for folder in folders)
    selected = {word for line in lines for word in re.findall(rf"-l {COMPONENT}=(\w+)", line)}
    assert selected <= components
    assert {"platform", "train"} <= selected


def test_the_page_trains_with_real_settings() -> None:
    told = [shlex.split(line, comments=True) for line in shell_lines() if "groundray.train" in line]
    for words in told:
        settings_of(Command("groundray.train", words[words.index("groundray.train") + 1 :]))
    assert told
