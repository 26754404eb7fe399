"""Kills a process of a run at an exact place, once: it is armed in all of them, by `sitecustomize`.

The plan is a folder with `plan.json`: `who` is killed (worker, node, driver), `when` (step, write, validation, epoch,
stage), at which `count` of that in its process, and how long each step is held up (`slow`, seconds). A file beside it
says that it has happened. With `drain`, the node of rank 1 is drained at that step. With `resize`, a node is taken away
at that step of a group of two workers, and added at that step of a group of one.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import signal
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

    def at_a_step(loop: Any) -> None:
        real = loop.sum_over_ranks

        def summing(tensors: Any) -> None:
            time.sleep(plan.get("slow", 0))
            if "resize" in plan:
                resize()
            if "drain" in plan:
                drain()
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

    return {
        "groundray.training.loop": at_a_step,
        "groundray.storage": at_a_write,
        "groundray.stage.grounding": in_a_validation,
        "groundray.training.keeper": at_an_edge,
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
