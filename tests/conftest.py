"""Shared test fixtures: shape checks at run time, a small world on disk, one Ray cluster."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import known_environment
import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    import mlflow_registry
    import servers
    from machines import Machine
    from search_fixtures import SearchPaths

    from groundray.image_search.service import Service

FOLDER = known_environment.enter()  # before anything that reads the environment is imported
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and groundray then does too
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background jobs ignore it, and so would all children
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the shapes of every public tensor function are checked while the tests run
install_import_hook(
    [
        "groundray.loss",
        "groundray.model",
        "groundray.analysis.measures",
        "groundray.analysis.report.labels",
        *(f"groundray.stage.{name}" for name in ("visual", "language", "grounding", "relational", "retrieval")),
        "groundray.stage.contrastive",
        "groundray.stage.metrics",
        "groundray.analysis.inputs.embedding",
        "groundray.analysis.inputs.lexicon",
        "groundray.data.batches",
        "groundray.data.image_inputs",
        "groundray.data.transforms",
        *(
            f"groundray.image_search.{name}"
            for name in (
                "towers",
                "index",
                "image_ids",
                "compact",
                "knn",
                "inverted_file",
                "query",
                "filters",
                "grid",
                "explain",
                "dual_encoder",
                "calibration",
                "word_space",
                "uploads",
            )
        ),
    ],
    "beartype.beartype",
)


def pytest_unconfigure() -> None:
    known_environment.leave(FOLDER)


# Folders of tests that show in full what others show in small; elsewhere a module or a test says it of itself.
THOROUGH = {
    "benchmarks": "whole benchmarks; a figure is no fact about the code",
    "browser": "the page in chromium; tests/image_search/test_http.py asks the same service",
    "faults": "damaged files by the hundred, and stores and servers that fail",
    "gpu": "steps and losses here and on a pretend GPU, as `make gpu` runs them on a real one",
    "scale": "large sizes",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of which `make test` or `make thorough` selects no test: to import them takes half a minute."""
    if collection_path.suffix != ".py":
        return None
    text = collection_path.read_text()
    folder = collection_path.relative_to(Path(__file__).parent).parts[0] in THOROUGH
    whole = folder or re.search(r"^pytestmark = (\[\s*)?pytest\.mark\.thorough", text, re.MULTILINE)
    if config.option.markexpr.startswith("not (thorough "):
        return True if whole else None
    if config.option.markexpr.startswith("thorough and "):
        return None if whole or "thorough" in text or "anywhere" in text else True
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of thorough folders. With pytest-xdist, run the slowest tests first, so that the processes end
    together."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in THOROUGH:
            item.add_marker(pytest.mark.thorough)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all modules that use the session's cluster in one process, and every other module in one process, so that
    fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "ray" if "ray_cluster" in (config.rootpath / module).read_text() else module

    return ByModule(config, log)


STAGES = "visual,language,grounding,relational,retrieval"
# grounding with small steps, which do not amplify rounding errors
CALM = ("--grounding.temperature=0.1", "--grounding.optimizer.lr=1e-4", "--grounding.optimizer.language_lr=1e-4")

# all of a stage's state besides weights and moments: a schedule, the average of the weights, adapters and theirs
OPTIMISED = (
    "--grounding.optimizer.kind=adamw",
    "--grounding.optimizer.weight_decay=0.1",
    "--grounding.optimizer.schedule=cosine",
    "--grounding.optimizer.warmup=3",
    "--grounding.optimizer.layer_decay=0.7",
    "--grounding.optimizer.ema=0.9",
    "--grounding.trains.lora.rank=3",
    "--grounding.trains.lora.dropout=0.2",
    "--scaling.gradient_checkpointing=true",
)


@dataclass(frozen=True)
class SmallWorld:
    """An embedded world of 72 training and 20 validation scenes, and of 4 training and 1 validation objects a shape."""

    source: Path
    shards: Path

    def settings(self, *words: str, stages: str = "grounding", url: str | None = None) -> list[str]:
        """Return command-line arguments of the preset `demo` for this world: small batches, no tracking, no analysis.

        Args:
            stages: stages to run.
            url: URL of a copy of the shards and the tokenizer.
        """
        shards = url or str(self.shards)
        tokenizer = f"{url}/tokenizer" if url else str(self.source / "tokenizer")
        places = {
            "visual": "objects",
            "language": "text",
            "grounding": "captions",
            "relational": "scene_graphs",
            "retrieval": "captions",
        }
        data = [
            f"--{stage}.{part}={shards}/{kind}/{part}" for stage, kind in places.items() for part in ("train", "val")
        ]
        sizes = [f"--{stage}.{key}={value}" for stage in places for key, value in (("batch_size", 8), ("epochs", 2))]
        return [
            f"--stages={stages}",
            f"--model.language.tokenizer={tokenizer}",
            *data,
            *sizes,
            "--language.batch_size=40",
            "--visual.optimizer.warmup=0",
            "--grounding.trains.trunk=true",
            "--tracking.enabled=false",
            "--run.programs=false",
            f"--analysis.norms={self.source / 'norms'}",
            "--analysis.enabled=false",
            *words,
        ]

    def copied_to(self, url: str) -> str:
        """Copy the shards and the tokenizer to a URL, and return it."""
        from groundray.storage.folder import Folder

        Folder.at(url).upload(self.shards)
        Folder.at(url).upload(self.source / "tokenizer", "tokenizer")
        return url


@pytest.fixture(autouse=True, scope="module")
def freed_memory() -> Iterator[None]:
    """Give memory that is free, but kept for other allocations, back to the system: a process of tests would grow."""
    yield
    with contextlib.suppress(AttributeError):  # not of glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore torch's number of threads after each test: float32 sums depend on it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Where a test of `tests/gpu` computes."""
    import machines

    with machines.use(request.param) as used:
        yield used


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    from groundray.data.scenes import write_world
    from groundray.data.sources import coco, image_folder, text, visual_genome

    root = tmp_path_factory.mktemp("world")
    source = root / "source"
    write_world(source, num_scenes=72, num_val=20, objects_per_noun=4, workers=1)
    words = None
    for split in ("train", "val"):
        captioned = coco.Captions(source / "coco" / "annotations" / f"captions_{split}.json", root, [])
        write(root, "captions", split, coco.rows(checked(source / "coco" / split, captioned.images())))

        folder = source / "visual_genome" / split
        files = visual_genome.Files(
            *(folder / f"{name}.json" for name in ("objects", "attributes", "relationships", "image_data"))
        )
        found = visual_genome.SceneGraphs(files, visual_genome.Filter(vocabulary=words), [])
        words = (found.predicates, found.classes)
        rows = visual_genome.rows(checked(source / "coco" / split, found.graphs()))
        write(root, "scene_graphs", split, rows, {"classes": found.classes, "predicates": found.predicates})

        labelled = image_folder.ClassFolders(source / "objects" / split, [])
        rows = image_folder.rows(checked(source / "objects" / split, labelled.images()))
        write(root, "labelled_images", split, rows, {"classes": labelled.classes}, name="objects")
        write(root, "text", split, text.read_lines([source / "text" / f"{split}.txt"], []))
    return SmallWorld(source, root / "shards")


def checked(folder: Path, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the items with their checked image files."""
    from groundray.data.sources.image_files import check_image
    from groundray.storage.folder import Folder

    return ((item, check_image(Folder.at(folder), item.file_names)) for item in items)


def write(
    root: Path,
    kind: str,
    split: str,
    rows: Iterable[dict[str, Any]],
    words: dict[str, tuple[str, ...]] | None = None,
    name: str | None = None,
) -> None:
    """Write shards of a kind, in small row groups, to `root/shards`."""
    from groundray.data.shards import write_shards
    from groundray.storage.folder import Folder

    folder = Folder.at(root / "shards" / (name or kind) / split).make()
    write_shards(folder, kind, rows, {}, {}, words, row_group_bytes=40_000)


@pytest.fixture(scope="session")
def s3() -> Iterator[servers.Server]:
    import servers

    with servers.s3() as server:
        yield server


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    import servers

    with servers.gs(tmp_path_factory.mktemp("gs")) as server:
        yield server


# what runs on S3's protocol runs on Google's in the thorough tests
@pytest.fixture(params=["local", "s3", pytest.param("gs", marks=pytest.mark.thorough)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that does not exist yet: local, and in each kind of object store."""
    if request.param == "local":
        return str(tmp_path / "folder")
    server: servers.Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    return server.folder()


@pytest.fixture(scope="session")
def ray_cluster(s3: servers.Server) -> Iterator[None]:
    """The session's Ray cluster, for tests marked `ray`: of two CPUs on any machine, and with the credentials of
    the S3 server."""
    from groundray.runtime import cluster

    with contextlib.ExitStack() as connected:
        with pytest.MonkeyPatch.context() as patches:
            s3.use(patches)
            connected.enter_context(cluster.connect(num_cpus=2))
        yield


@pytest.fixture(scope="session")
def place(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> SearchPaths:
    """An untrained model with search heads, the 20 validation scenes, and the norms."""
    from search_fixtures import SearchPaths, write_model

    root = tmp_path_factory.mktemp("search")
    checkpoint = write_model(root / "model", world)
    return SearchPaths(
        checkpoint, str(world.shards / "captions" / "val"), str(root / "index"), str(world.source / "norms")
    )


@pytest.fixture(scope="session")
def service(place: SearchPaths) -> Service:
    from groundray.image_search.service import Service

    return Service.open(place.checkpoint, place.images, place.index, place.norms, rerank=0)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, which takes seconds to make."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    """The URI of an empty store of MLflow in `tmp_path`, without the seconds that making one takes."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


@pytest.fixture(scope="session")
def local_registry(
    empty_store: Path, place: SearchPaths, tmp_path_factory: pytest.TempPathFactory
) -> mlflow_registry.Registry:
    """The model of `place` in a local store of MLflow."""
    import mlflow_registry

    folder = tmp_path_factory.mktemp("local registry")
    shutil.copy(empty_store, folder)
    return mlflow_registry.write(f"sqlite:///{folder}/mlflow.db", place.checkpoint, (folder / "files").as_uri())


@pytest.fixture(scope="session")
def served_registry(
    empty_store: Path, place: SearchPaths, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[mlflow_registry.Registry]:
    """The model of `place` on a server of MLflow that serves its artifacts."""
    import mlflow_registry

    folder = tmp_path_factory.mktemp("served")
    shutil.copy(empty_store, folder)
    with mlflow_registry.running(folder) as uri:
        yield mlflow_registry.write(uri, place.checkpoint)
