"""Runs a pass and places workers on nodes of this machine, some with pretended GPUs, and prints where, as JSON.

`python mixed_nodes.py FOLDER`
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table

from groundray import config
from groundray.data.derived import PART_BYTES, DerivedDataset, finalize
from groundray.data.row_groups import read_rows
from groundray.data.shards import write_shards
from groundray.runtime.data.derived_tasks import make_on_cluster
from groundray.runtime.data.ray_stream import task_sizes
from groundray.runtime.data.scheduling import quiet_context
from groundray.runtime.nodes import ACCELERATOR_TYPE, accepting_nodes
from groundray.runtime.train.resources import DataCpuBudget, cluster_resources, min_bundles
from groundray.storage.folder import Folder

NODES = {"small": (1, 1), "large": (2, 1), "without": (2, 0)}  # CPUs and GPUs
TYPES = {"small": "T4", "large": "H100"}
WORKERS = ("--scaling.num_workers=2", "--scaling.use_gpu=true", "--scaling.cpus_per_worker=1", "--run.name=x")


class Model:
    """A model that is not moved: no GPU is there."""

    def to(self, device: str) -> Model:
        assert device == "cuda"
        return self


class NodeIds:
    """Encodes a line as the node on which it is encoded."""

    columns = ("id",)

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        return {"id": item["id"].combine_chunks(), "text": pa.array([here()] * len(item), pa.string())}


def here() -> str:
    return ray.get_runtime_context().get_node_id()


def made_on(folder: Path) -> list[str]:
    """Return the node on which the one part of a derived data set is made: one task, fewer than there are GPUs."""
    lines = [{"id": "1", "text": "a line"}]
    source = write_shards(Folder.at(folder / "source").make(), "text", lines, {}, {}, row_group_bytes=1)
    spec = DerivedDataset(source, Folder.at(folder / "derived"), "key", "text", PART_BYTES, "lines", "")
    work = {"lines": (spec, lambda model, device: NodeIds())}
    list(make_on_cluster(work, Model(), use_gpu=True, gpu_type=TYPES["large"]))
    return read_rows(finalize(spec), np.arange(1), ["text"])["text"].to_pylist()


def trained_and_read_on() -> tuple[list[str], list[str]]:
    """Return the nodes of two workers with a GPU each, and those on which their data is read meanwhile."""
    settings = config.load("demo", WORKERS)
    cluster_resources(settings).check()
    worker, _ = min_bundles(settings)[:2]
    group = placement_group([worker, worker])
    ray.get(group.ready(), timeout=60)
    workers: list[str] = list(placement_group_table(group)["bundles_to_node_id"].values())
    sizes = task_sizes(DataCpuBudget.of(workers, worker["CPU"], accepting_nodes()))
    with ray.data.DataContext.current(quiet_context()):
        rows: Any = ray.data.range(2, override_num_blocks=2).map(lambda _: {"node": here()}, num_cpus=sizes.decoding)
        return workers, sorted({row["node"] for row in rows.iter_rows()})


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    name_of = {}
    for name, (cpus, gpus) in NODES.items():
        types = {f"{ACCELERATOR_TYPE}{TYPES[name]}": 1} if name in TYPES else {}
        name_of[cluster.add_node(num_cpus=cpus, num_gpus=gpus, resources=types).node_id] = name
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    made, (workers, reading) = made_on(folder), trained_and_read_on()
    ray.shutdown()
    cluster.shutdown()
    names = {"made": made, "workers": workers, "reading": reading}
    print(json.dumps({what: [name_of[node] for node in found] for what, found in names.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
