"""Kills a process of a run at an exact place, once. `sitecustomize` arms it in every Python process of the run.

The plan is a folder with `plan.json`:

    who     worker, node or driver: the process to kill
    what    instead of a kill, what a worker does: hang, stop (SIGSTOP), devour (take all memory)
    when    begin, step, write, validation, epoch or stage
    count   at which occurrence in its process
    slow    seconds by which each step is delayed, until there is a file `quick`
    drain   the step at which the node of rank 1 is drained
    resize  the step at which a group of two workers loses a node, and a group of one gets one
    cut     the checkpoint at whose manifest the host of rank 0 is cut off; the manifest is written once the next
            attempt has begun
    mend    the step of a single worker at which the host is reconnected; each of its steps takes `alone` seconds

A file beside the plan records that the fault has happened.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DONE = "happened"
DRIVER = "driver.pid"


def arm(folder: str) -> None:
    """Patch this process according to the plan."""
    plan_folder = Path(folder)
    if sys.argv[0] == "-m" and "groundray.train" in sys.orig_argv:
        (plan_folder / DRIVER).write_text(str(os.getpid()))
    plan = json.loads((plan_folder / "plan.json").read_text())
    sys.meta_path.insert(0, _After(_patches(plan, plan_folder)))


def hang() -> None:
    """Sleep for ever."""
    while True:
        time.sleep(1)


def devour() -> None:
    """Take 200 MB of memory a second, until this process is killed for it."""
    taken = []
    while True:
        taken.append(b"\1" * 20_000_000)
        time.sleep(0.1)


def _patches(plan: dict[str, Any], plan_folder: Path) -> dict[str, Callable[[Any], None]]:
    """Returns the patches of modules, by name, to apply after import."""
    seen = [0]

    def strike(rank: int) -> None:
        """Do what the plan says on a rank, if this is the planned occurrence and it has not happened yet."""
        import torch.distributed as dist

        here = dist.get_rank() if dist.is_initialized() else 0
        if here != rank % (dist.get_world_size() if dist.is_initialized() else 1):
            return
        seen[0] += 1
        if seen[0] != plan["count"]:
            return
        try:
            (plan_folder / DONE).touch(exist_ok=False)
        except FileExistsError:
            return
        victims = {"worker": os.getpid, "node": os.getppid, "driver": lambda: int((plan_folder / DRIVER).read_text())}
        match plan.get("what", "kill"):
            case "hang":
                hang()
            case "devour":
                devour()
            case "stop":
                os.kill(victims[plan["who"]](), signal.SIGSTOP)
            case "kill":
                os.kill(victims[plan["who"]](), signal.SIGKILL)

    def resize() -> None:
        """Have nodes.py remove or add a node, once each."""
        import torch.distributed as dist

        seen[0] += 1
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        name = "grow" if alone else "shrink"
        if seen[0] == plan["resize"] and not (plan_folder / f"{name}.{DONE}").exists():
            (plan_folder / f"{name}.{DONE}").touch()
            (plan_folder / name).touch()

    def drain() -> None:
        """Drain this node, as a cloud does before it preempts a machine."""
        import ray
        import torch.distributed as dist

        seen[0] += dist.is_initialized() and dist.get_rank() == 1
        if seen[0] == plan["drain"] and not (plan_folder / f"drain.{DONE}").exists():
            (plan_folder / f"drain.{DONE}").touch()
            context = ray.get_runtime_context()
            words = ["--address", context.gcs_address, "--node-id", context.get_node_id()]
            reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words, *reason]
            subprocess.Popen([*command, "--deadline-remaining-seconds", "60"])

    def cut(run: Path) -> None:
        """Have hosts.py cut this host off, and wait until the run has resumed without it."""
        (plan_folder / "cut.asked").write_text(socket.gethostname())
        (plan_folder / "cut.asked").rename(plan_folder / "cut")
        while not any((run / "attempts").glob("0002-*-from.json")):
            time.sleep(0.1)

    def mend() -> None:
        """Have hosts.py reconnect the host, once; slow down a single worker until there are two again."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            seen[0] += 1
            if seen[0] == plan["mend"]:
                (plan_folder / "mend").touch()
            time.sleep(plan["alone"])

    def at_a_step(loop: Any) -> None:
        real = loop.GradientSums.finish

        def summing(sums: Any) -> None:
            if not (plan_folder / "quick").exists():
                time.sleep(plan.get("slow", 0))
            if "resize" in plan:
                resize()
            if "drain" in plan:
                drain()
            if "mend" in plan:
                mend()
            if plan.get("when") == "step":
                strike(1)
            real(sums)

        loop.GradientSums.finish = summing

    def at_a_write(storage: Any) -> None:
        real = storage.Folder.write_bytes

        def writing(folder: Any, name: str, content: bytes) -> None:
            if plan.get("when") == "write" and name == "optimizer.safetensors":
                strike(0)
            real(folder, name, content)

        storage.Folder.write_bytes = writing

    def at_a_manifest(storage: Any) -> None:
        real, written = storage.Folder.write_sealed, [0]

        def sealing(folder: Any, name: str, content: Any) -> None:
            written[0] += name == "manifest.json"
            stale = name == "manifest.json" and written[0] == plan.get("cut") and not (plan_folder / "stale").exists()
            if stale:
                (plan_folder / "stale").touch()
                cut(Path(folder.path).parents[1])
            real(folder, name, content)
            if stale:
                (plan_folder / "stale").write_text(f"{folder.name}/{name}")

        storage.Folder.write_sealed = sealing

    def in_a_validation(grounding: Any) -> None:
        real = grounding.GroundingStage.validate

        def validating(stage: Any, encode: Any, steps: Any) -> Any:
            def struck() -> Iterator[Any]:
                for number, step in enumerate(steps):
                    if plan.get("when") == "validation" and number == 1:
                        strike(1)
                    yield step

            return real(stage, encode, struck())

        grounding.GroundingStage.validate = validating

    def at_an_edge(module: Any) -> None:
        checkpointer = module.Checkpointer
        validation_done, stage_done = checkpointer.validation_done, checkpointer.stage_done

        def after_a_validation(self: Any, *args: Any) -> None:
            validation_done(self, *args)
            self.wait()
            if plan.get("when") == "epoch":
                strike(0)

        def after_a_stage(self: Any, *args: Any) -> None:
            stage_done(self, *args)
            if plan.get("when") == "stage":
                strike(0)

        checkpointer.validation_done, checkpointer.stage_done = after_a_validation, after_a_stage

    def at_a_beginning(torch: Any) -> None:
        real = torch._setup_torch_process_group

        def setting_up(*args: Any, **kwargs: Any) -> None:
            if plan.get("when") == "begin":
                strike(0)
            real(*args, **kwargs)

        torch._setup_torch_process_group = setting_up

    return {
        "groundray.training.loop": at_a_step,
        "groundray.storage.folder": lambda storage: (at_a_write(storage), at_a_manifest(storage)),
        "groundray.stage.grounding": in_a_validation,
        "groundray.training.checkpointer": at_an_edge,
        "ray.train.torch.config": at_a_beginning,
    }


class _After(importlib.abc.MetaPathFinder):
    """Patches modules once they are imported."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]):
        self._patches = patches

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        patch = self._patches.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if patch else None
        if patch is None or spec is None or spec.loader is None:
            return None
        real = spec.loader.exec_module

        def executed(module: Any) -> None:
            real(module)
            patch(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec
