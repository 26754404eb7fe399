"""Kills a process of a run at an exact place, once: it is armed in all of them, by `sitecustomize`.

The plan is a folder with `plan.json`: `who` is killed (worker, node, driver), or `what` else is done to a worker (hang,
stop, devour), `when` (begin, step, write, validation, epoch, stage), at which `count` of that in its process, and how
long each step is held up (`slow`, seconds, until there is a file `quick`). A file beside it says that it has happened.
With `drain`, the node of rank 1 is drained at that step. With `resize`, a node is taken away at that step of a group of
two workers, and added at that step of a group of one. With `cut`, the host of rank 0 is cut off when the manifest of
that checkpoint is due, which is written all the same once the next attempt has begun; with `mend`, it comes back at
that step of a worker alone, each step of which takes `alone` seconds.
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
    """Get ready in this process."""
    place = Path(folder)
    if sys.argv[0] == "-m" and "groundray.train" in sys.orig_argv:
        (place / DRIVER).write_text(str(os.getpid()))
    plan = json.loads((place / "plan.json").read_text())
    sys.meta_path.insert(0, _After(_patches(plan, place)))


def hang() -> None:
    """Do nothing for ever."""
    while True:
        time.sleep(1)


def devour() -> None:
    """Take memory, 200 MB a second, until this process is ended for it."""
    taken = []
    while True:
        taken.append(b"\1" * 20_000_000)
        time.sleep(0.1)


def _patches(plan: dict[str, Any], place: Path) -> dict[str, Callable[[Any], None]]:
    """What is changed in which module, after it has been imported."""
    seen = [0]

    def strike(rank: int) -> None:
        """Kill, if this is the place, and it has not happened yet."""
        import torch.distributed as dist

        here = dist.get_rank() if dist.is_initialized() else 0
        if here != rank % (dist.get_world_size() if dist.is_initialized() else 1):
            return
        seen[0] += 1
        if seen[0] != plan["count"]:
            return
        try:
            (place / DONE).touch(exist_ok=False)
        except FileExistsError:
            return
        victims = {"worker": os.getpid, "node": os.getppid, "driver": lambda: int((place / DRIVER).read_text())}
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
        """Take a node away or add one, once each; nodes.py does it."""
        import torch.distributed as dist

        seen[0] += 1
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        name = "grow" if alone else "shrink"
        if seen[0] == plan["resize"] and not (place / f"{name}.{DONE}").exists():
            (place / f"{name}.{DONE}").touch()
            (place / name).touch()

    def drain() -> None:
        """Announce that this node will be taken away, as a cloud does."""
        import ray
        import torch.distributed as dist

        seen[0] += dist.is_initialized() and dist.get_rank() == 1
        if seen[0] == plan["drain"] and not (place / f"drain.{DONE}").exists():
            (place / f"drain.{DONE}").touch()
            context = ray.get_runtime_context()
            words = ["--address", context.gcs_address, "--node-id", context.get_node_id()]
            reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words, *reason]
            subprocess.Popen([*command, "--deadline-remaining-seconds", "60"])

    def cut(run: Path) -> None:
        """Have this host cut off, hosts.py does it, and wait until the run has gone on without it."""
        (place / "cut.asked").write_text(socket.gethostname())
        (place / "cut.asked").rename(place / "cut")
        while not any((run / "attempts").glob("0002-*-from.json")):
            time.sleep(0.1)

    def mend() -> None:
        """Have it back, once; a worker alone takes its time, until there are two again."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            seen[0] += 1
            if seen[0] == plan["mend"]:
                (place / "mend").touch()
            time.sleep(plan["alone"])

    def at_a_step(loop: Any) -> None:
        real = loop.sum_over_ranks

        def summing(tensors: Any) -> None:
            if not (place / "quick").exists():
                time.sleep(plan.get("slow", 0))
            if "resize" in plan:
                resize()
            if "drain" in plan:
                drain()
            if "mend" in plan:
                mend()
            if plan.get("when") == "step":
                strike(1)
            real(tensors)

        loop.sum_over_ranks = summing

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
            stale = name == "manifest.json" and written[0] == plan.get("cut") and not (place / "stale").exists()
            if stale:
                (place / "stale").touch()
                cut(Path(folder.path).parents[1])
            real(folder, name, content)
            if stale:
                (place / "stale").write_text(f"{folder.name}/{name}")

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

    def at_an_edge(keeper: Any) -> None:
        epoch_done, finish = keeper.Keeper.epoch_done, keeper.Keeper.finish

        def after_an_epoch(self: Any, *args: Any) -> None:
            epoch_done(self, *args)
            self.wait()
            if plan.get("when") == "epoch":
                strike(0)

        def after_a_stage(self: Any, *args: Any) -> None:
            finish(self, *args)
            if plan.get("when") == "stage":
                strike(0)

        keeper.Keeper.epoch_done, keeper.Keeper.finish = after_an_epoch, after_a_stage

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
    """Changes modules once they are imported."""

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
