"""Every private name of Ray that groundray uses, with the reason for it.

Ray may rename or drop a private name in any release, so pyproject.toml pins Ray to `RAY_VERSIONS` and a test loads each
entry of `PRIVATE_NAMES`. Other modules take these names from here (`compat.ElasticScalingPolicy`) and import no private
name themselves. A name is imported from Ray when it is first used: serving searches does not import Ray Train.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

if TYPE_CHECKING:
    from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback
    from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback as StateManagerCallback
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE as ENV_VARS_TO_PROPAGATE
    from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR as HEALTH_CHECK_INTERVAL_S_ENV_VAR
    from ray.train.v2._internal.constants import (
        WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR as WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR,
    )
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError as WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError as WorkerHealthCheckFailedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError as WorkerHealthCheckTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback as ControllerCallback
    from ray.train.v2._internal.execution.callback import ReportCallback as ReportCallback
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
    from ray.train.v2._internal.execution.failure_handling import FailureDecision as FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import (
        RETRYABLE_CONTROLLER_ERRORS as RETRYABLE_CONTROLLER_ERRORS,
    )
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy as ElasticScalingPolicy
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy as FixedScalingPolicy
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision as NoopDecision
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision as ResizeDecision
    from ray.train.v2._internal.execution.scaling_policy import ScalingDecision as ScalingDecision
    from ray.train.v2._internal.util import TrainingFramework as TrainingFramework

RAY_VERSIONS = ">=2.60,<2.61"
# folders of Ray's package with what its own processes run, beside what groundray imports
PROCESS_FOLDERS = ("dashboard", "autoscaler", "_private", "_common")


class PrivateName(NamedTuple):
    """A private name of Ray: `module:attribute`, or `module:Class.attribute`, and why groundray needs it."""

    path: str
    reason: str


PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PROXY_GRPC = "RAY_SERVE_PROXY_USE_GRPC"
ROUTER_LOOP = "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"
GRPC_BYTES = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
_TRAIN = "ray.train.v2._internal"
PRIVATE_NAMES = {
    # Ray Train: its policies for scaling and failures are not configurable
    "ScalingDecision": PrivateName(f"{_TRAIN}.execution.scaling_policy:ScalingDecision", "return type of policies"),
    "NoopDecision": PrivateName(f"{_TRAIN}.execution.scaling_policy:NoopDecision", "keep the worker group"),
    "ResizeDecision": PrivateName(f"{_TRAIN}.execution.scaling_policy:ResizeDecision", "change the worker group"),
    "FixedScalingPolicy": PrivateName(
        f"{_TRAIN}.execution.scaling_policy:FixedScalingPolicy", "base of FixedWorkers, which limits the wait"
    ),
    "ElasticScalingPolicy": PrivateName(
        f"{_TRAIN}.execution.scaling_policy:ElasticScalingPolicy",
        "base of ElasticWorkers, which resizes at checkpoints",
    ),
    "ElasticScalingPolicy._count_possible_workers": PrivateName(
        f"{_TRAIN}.execution.scaling_policy:ElasticScalingPolicy._count_possible_workers",
        "overridden: only world sizes that divide the chunks of a global batch",
    ),
    "ScalingConfig._resources_per_worker_not_none": PrivateName(
        "ray.train:ScalingConfig._resources_per_worker_not_none", "CPUs of a worker; see resources_per_worker()"
    ),
    "RayFailurePolicy": PrivateName(
        f"{_TRAIN}.execution.failure_handling:FailurePolicy", "base of FailurePolicy, which counts failures by progress"
    ),
    "FailureDecision": PrivateName(f"{_TRAIN}.execution.failure_handling:FailureDecision", "retry or raise"),
    "RETRYABLE_CONTROLLER_ERRORS": PrivateName(
        f"{_TRAIN}.execution.failure_handling.default:RETRYABLE_CONTROLLER_ERRORS", "retried as Ray's own policy does"
    ),
    "is_preemption_failure": PrivateName(
        f"{_TRAIN}.execution.failure_handling.default:_is_preemption_failure", "preemptions do not count as failures"
    ),
    "WorkerGroupStartupTimeoutError": PrivateName(
        f"{_TRAIN}.exceptions:WorkerGroupStartupTimeoutError", "tests of the failure policy"
    ),
    "WorkerHealthCheckFailedError": PrivateName(
        f"{_TRAIN}.exceptions:WorkerHealthCheckFailedError", "tell a dead worker from one that raised"
    ),
    "WorkerHealthCheckTimeoutError": PrivateName(
        f"{_TRAIN}.exceptions:WorkerHealthCheckTimeoutError", "tell a hanging worker from one that raised"
    ),
    "TorchTrainer._initialize_and_run_controller": PrivateName(
        "ray.train.torch:TorchTrainer._initialize_and_run_controller", "overridden: passes our policies and callbacks"
    ),
    "ENV_VARS_TO_PROPAGATE": PrivateName(f"{_TRAIN}.constants:ENV_VARS_TO_PROPAGATE", "environment of the controller"),
    "WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR": PrivateName(
        f"{_TRAIN}.constants:WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR", "scaling.hang_minutes sets it"
    ),
    "HEALTH_CHECK_INTERVAL_S_ENV_VAR": PrivateName(
        f"{_TRAIN}.constants:HEALTH_CHECK_INTERVAL_S_ENV_VAR", "reports are taken twice a second"
    ),
    "ControllerCallback": PrivateName(
        f"{_TRAIN}.execution.callback:ControllerCallback", "base of PartialGroupCleanup and LastValidation"
    ),
    "ReportCallback": PrivateName(f"{_TRAIN}.execution.callback:ReportCallback", "base of LastValidation"),
    "StateManagerCallback": PrivateName(
        f"{_TRAIN}.callbacks.state_manager:StateManagerCallback", "keeps Ray Train's state of a run"
    ),
    "StateManagerCallback._state_manager": PrivateName(
        f"{_TRAIN}.callbacks.state_manager:StateManagerCallback._state_manager", "see set_status_detail()"
    ),
    "TrainStateManager._runs": PrivateName(
        f"{_TRAIN}.state.state_manager:TrainStateManager._runs", "see set_status_detail()"
    ),
    "TrainStateManager._create_or_update_train_run": PrivateName(
        f"{_TRAIN}.state.state_manager:TrainStateManager._create_or_update_train_run", "see set_status_detail()"
    ),
    "WorkerGroupCallback": PrivateName(
        f"{_TRAIN}.execution.callback:WorkerGroupCallback", "base of PartialGroupCleanup"
    ),
    # Ray's own backend of torch.distributed would load torch in the controller; each worker calls these
    "TrainingFramework": PrivateName(f"{_TRAIN}.util:TrainingFramework", "torch, in Ray Train's state of a run"),
    "get_address_and_port": PrivateName("ray.train._internal.utils:get_address_and_port", "where rank 0 listens"),
    "set_torch_environment": PrivateName(
        "ray.train.torch.config:_set_torch_distributed_env_vars", "ranks, as torchrun sets them"
    ),
    "join_process_group": PrivateName("ray.train.torch.config:_setup_torch_process_group", "see group.join()"),
    "leave_process_group": PrivateName("ray.train.torch.config:_shutdown_torch", "see group.leave()"),
    "get_train_context": PrivateName(f"{_TRAIN}.execution.context:get_train_context", "see is_preempted()"),
    "TrainContext.preemption_context": PrivateName(
        f"{_TRAIN}.execution.context:TrainContext.preemption_context", "see is_preempted()"
    ),
    # Ray Data
    "ExecutionCallback": PrivateName(
        "ray.data._internal.execution.execution_callback:ExecutionCallback", "base of Scheduling"
    ),
    "DataContext.custom_execution_callback_classes": PrivateName(
        "ray.data:DataContext.custom_execution_callback_classes", "see set_execution_callbacks()"
    ),
    "Dataset._current_executor": PrivateName("ray.data:Dataset._current_executor", "see has_produced_all()"),
    "StreamingExecutor._topology": PrivateName(
        "ray.data._internal.execution.streaming_executor:StreamingExecutor._topology", "see has_produced_all()"
    ),
    "StreamingExecutor._resource_manager": PrivateName(
        "ray.data._internal.execution.streaming_executor:StreamingExecutor._resource_manager", "see use_cpu_limit()"
    ),
    "ResourceManager._get_total_resources": PrivateName(
        "ray.data._internal.execution.resource_manager:ResourceManager._get_total_resources", "see use_cpu_limit()"
    ),
    "ResourceManager.get_global_limits": PrivateName(
        "ray.data._internal.execution.resource_manager:ResourceManager.get_global_limits", "see cpu_limit()"
    ),
    "PhysicalOperator.has_execution_finished": PrivateName(
        "ray.data._internal.execution.interfaces:PhysicalOperator.has_execution_finished", "see has_produced_all()"
    ),
    # Ray Tune
    "ResultGrid._experiment_analysis": PrivateName(
        "ray.tune:ResultGrid._experiment_analysis", "trials with their state and configuration; see trials_of()"
    ),
    # Ray Serve
    "get_serve_client": PrivateName("ray.serve.context:_get_global_client", "see http_options()"),
    PROXY_CALLBACK: PrivateName(
        f"ray.serve._private.constants:{PROXY_CALLBACK}", "environment variable; see runtime/serve/proxy.py"
    ),
    **{
        name: PrivateName(f"ray.serve._private.constants:{name}", "environment variable; see runtime/serve/proxy.py")
        for name in (PROXY_GRPC, ROUTER_LOOP, GRPC_BYTES)
    },
    "REQUEST_TIMEOUT_HEADER": PrivateName(
        "ray.serve._private.constants:SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER", "see request_option_headers()"
    ),
    "REQUEST_DISCONNECT_HEADER": PrivateName(
        "ray.serve._private.constants:SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER", "see request_option_headers()"
    ),
    "serve_replica": PrivateName("ray.serve._private:replica", "see listen_at_node_address()"),
    "serve_replica.add_port_to_grpc_server": PrivateName(
        "ray.serve._private.replica:add_port_to_grpc_server", "see listen_at_node_address()"
    ),
    # Ray core
    "ray_constants": PrivateName("ray._private:ray_constants", "see loopback_only()"),
    "ray_constants.ENABLE_RAY_CLUSTER": PrivateName(
        "ray._private.ray_constants:ENABLE_RAY_CLUSTER", "see loopback_only()"
    ),
    "ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR": PrivateName(
        "ray._private.ray_constants:ENABLE_RAY_CLUSTERS_ENV_VAR", "see loopback_only()"
    ),
    "ray_state": PrivateName("ray._private.state:state", "see draining_nodes()"),
    "ray_state.get_draining_nodes": PrivateName(
        "ray._private.state:GlobalState.get_draining_nodes", "draining_nodes()"
    ),
    "canonicalize_bootstrap_address": PrivateName(
        "ray._private.services:canonicalize_bootstrap_address", "see address_of_auto()"
    ),
    "get_default_ray_temp_dir": PrivateName("ray._common.utils:get_default_ray_temp_dir", "see temporary_folder()"),
    "init_grpc_channel": PrivateName("ray._private.grpc_utils:init_grpc_channel", "see version_of()"),
    "CheckAliveRequest": PrivateName("ray.core.generated.gcs_service_pb2:CheckAliveRequest", "see version_of()"),
    "NodeInfoGcsServiceStub": PrivateName(
        "ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceStub", "see version_of()"
    ),
    "HEAD_NODE_RESOURCE_NAME": PrivateName(
        "ray._common.constants:HEAD_NODE_RESOURCE_NAME", "find the head among nodes"
    ),
}


def load(name: str) -> Any:
    """Return the object that an entry of `PRIVATE_NAMES` stands for; None for an attribute that only instances have.

    Raises:
        ImportError: the installed Ray lacks it.
    """
    path = PRIVATE_NAMES[name].path
    module, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = None if _is_instance_attribute(found, attribute) else getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"Ray {ray.__version__} lacks {path}; groundray needs ray{RAY_VERSIONS} ({error})") from error
    return found


def _is_instance_attribute(owner: Any, attribute: str) -> bool:
    """Return True for an attribute that only instances of a class have: a field, or one that a method names."""
    if not isinstance(owner, type) or hasattr(owner, attribute):
        return False
    methods = (method.__code__ for method in vars(owner).values() if isinstance(method, FunctionType))
    return attribute in getattr(owner, "__dataclass_fields__", ()) or any(
        attribute in code.co_names for code in methods
    )


def __getattr__(name: str) -> Any:
    if name not in PRIVATE_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(name)


def resources_per_worker(scaling_config: Any) -> dict[str, float]:
    """Return the resources that a `ray.train.ScalingConfig` asks for each worker, with Ray's defaults filled in."""
    return scaling_config._resources_per_worker_not_none


def is_preempted() -> bool:
    """Return True in a Ray Train worker whose group has a machine that is about to be taken away.

    The public `ray.train.get_preemption_info` is a barrier of all ranks; this is what Ray has told this rank.
    """
    return load("get_train_context")().preemption_context.preemption_info is not None


def set_status_detail(states: StateManagerCallback, run_id: str, detail: str, replace: bool) -> None:
    """Make a text the detail of a run's status in Ray Train's state, which Ray's dashboard shows.

    Waits for it once the run has ended, as its controller then ends too.

    Args:
        run_id: Ray Train's id of the run.
        replace: also if the status has a detail.
    """
    manager = states._state_manager
    run = manager._runs[run_id]
    if replace or run.status_detail is None:
        run.status_detail = detail
        manager._create_or_update_train_run(run, block=run.status.is_terminal())


def set_execution_callbacks(context: Any, callbacks: list[type[Any]]) -> None:
    """Have Ray Data call these `ExecutionCallback` classes for datasets that are executed with a `DataContext`."""
    context.custom_execution_callback_classes = callbacks


def use_cpu_limit(executor: Any, cpus: float) -> None:
    """Have an executor of Ray Data use this many CPUs instead of its share of the cluster.

    Ray Data (2.60) divides the CPUs left on each node by the number of running datasets, rounded down, and gives that
    to each, at most its `resource_limits`. On small nodes, or with many ranks, it is less than a task needs, or none.
    """
    manager = executor._resource_manager
    share = manager._get_total_resources
    manager._get_total_resources = lambda: share().copy(cpu=cpus)


def cpu_limit(dataset: Any) -> float:
    """Return the CPUs that Ray Data uses at most for a dataset that is iterated over."""
    return dataset._current_executor._resource_manager.get_global_limits().cpu


def has_produced_all(dataset: Any) -> bool:
    """Return True if a dataset that is iterated over has no more task to run, whether its blocks are used or not."""
    executor = dataset._current_executor
    return executor is not None and all(operator.has_execution_finished() for operator in executor._topology)


def trials_of(grid: Any) -> list[Any]:
    """Return the `ray.tune` trials of a `ResultGrid`, whose public results lack their state and name."""
    return grid._experiment_analysis.trials


def http_options() -> Any:
    """Return host and port of the running Ray Serve, which may have been started by someone else."""
    return load("get_serve_client")().http_config


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to leave the cluster. `ray.nodes()` does not tell them apart."""
    return set(load("ray_state").get_draining_nodes())


def address_of_auto() -> str | None:
    """Return the HOST:PORT that `RAY_ADDRESS=auto` stands for; None if Ray knows of no cluster on this machine.

    It is the cluster whose head runs on this machine, or else the last that `ray start` started here, dead or alive.
    """
    try:
        return load("canonicalize_bootstrap_address")("auto")
    except (ConnectionError, ValueError):  # ValueError: the file that names the last cluster is damaged
        return None


def temporary_folder() -> str:
    """Return the folder for the sockets and logs of a cluster that this process starts."""
    return load("get_default_ray_temp_dir")()


def version_of(address: str, seconds: float) -> str:
    """Return the Ray version of the cluster whose head listens at HOST:PORT.

    `ray.init` would retry for minutes, print pages, and not react to signals meanwhile.

    Raises:
        ConnectionError: no Ray answers within so many seconds; the message says why.
        PermissionError: the cluster does not accept this process's token.
    """
    import grpc
    from ray.exceptions import AuthenticationError

    channel = load("init_grpc_channel")(address)
    try:
        stub = load("NodeInfoGcsServiceStub")(channel)
        return stub.CheckAlive(load("CheckAliveRequest")(), timeout=seconds).ray_version
    except AuthenticationError as error:  # this process is to send a token, and has none
        raise PermissionError(error.message) from None
    except grpc.RpcError as error:
        code, details = error.code(), str(error.details())  # type: ignore[attr-defined]  # both are a grpc.Call's
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise PermissionError(details) from None
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ConnectionError(f"no answer within {seconds:g} s") from None
        raise ConnectionError(details.rpartition("last error: ")[2]) from None
    finally:
        channel.close()


def request_option_headers() -> tuple[str, str]:
    """Return the names of the headers with which a request changes its own timeout and cancellation in Ray Serve."""
    return load("REQUEST_TIMEOUT_HEADER"), load("REQUEST_DISCONNECT_HEADER")


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Have a cluster that `ray.init` starts inside the context listen on loopback alone, as it does on macOS.

    On Linux, all ports of a local cluster otherwise accept connections from other machines.
    """
    constants = load("ray_constants")
    variable, enabled = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(variable)
    os.environ[variable], constants.ENABLE_RAY_CLUSTER = "0", False  # of its processes, and of this one
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = enabled
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def listen_at_node_address() -> None:
    """Have the replica of Ray Serve that this process becomes listen at the address of its node alone.

    Its port takes pickled requests from other replicas without a token; Serve opens it at every address of the machine.
    """
    replica, node = load("serve_replica"), ray.util.get_node_ip_address()
    add_port, address = replica.add_port_to_grpc_server, f"[{node}]:0" if ":" in node else f"{node}:0"
    replica.add_port_to_grpc_server = lambda server, everywhere: add_port(server, address)
