"""A training step of the grounding stage, with and without trunk features, and with and without Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groundray import config
from groundray.benchmarks.input_pipeline import write_photos
from groundray.benchmarks.measure import (
    NO_GPU,
    Column,
    Report,
    Row,
    chosen_device,
    machine,
    medians,
    seconds,
    times,
)
from groundray.benchmarks.session import Case, Session
from groundray.config import Settings
from groundray.data.schema import Dataset
from groundray.storage.folder import Folder
from groundray.training import in_process, layout, preflight
from groundray.training.events import Event, StepDone
from groundray.training.timing import PARTS

CACHED, PIXELS, ALONE, ALONE_PIXELS = "trunk features", "images", "trunk features, no Ray", "images, no Ray"
BASELINE = PIXELS
PHOTOS, FEW_PHOTOS, HELD_OUT = 384, 256, 16  # few where time is limited
PROFILED = 3  # steps of each contender
FIRST_FEW = 2  # steps of a run that are not counted
FEWEST_STEPS = 2  # of an epoch: a run of two epochs then has some that count
CASE = "two epochs"
FRACTIONS = (*PARTS, "other")
COLUMNS = (
    Column("a step", seconds, ("step",)),
    Column("samples/s", lambda rate: f"{rate:,.1f}", ("samples_per_second",)),
    Column(f"speed of\n{BASELINE}", times, ("speed_of_images",)),
    *(Column(part.replace("_", "\n"), lambda fraction: f"{fraction:.1%}", (f"time/{part}",)) for part in FRACTIONS),
    Column("of peak\nFLOPs", lambda fraction: f"{fraction:.1%}", ("flop_utilisation",)),
    Column("memory", lambda size: f"{size:.2f} GB", ("peak_memory_gb",)),
    Column("loss", lambda loss: f"{loss:.4f}", ("loss",)),
)


@dataclass
class Run:
    """The settings of a contender, and the number of its runs so far. Each run has its own name."""

    settings: Settings
    number: int = 0
    tell: Callable[[str], None] = lambda _: None  # takes how far a run is

    def __call__(self) -> dict[str, float]:
        """Train two epochs. Returns medians over the steps, and the mean loss of the second epoch."""
        self.number += 1
        called = {"name": f"{self.settings.run.name}-{self.number}"}
        settings = Settings(**_with(self.settings, {"run": called}))
        steps: list[dict[str, float]] = []

        def observe(event: Event) -> None:
            if isinstance(event, StepDone):
                steps.append(event.metrics)
                self.tell(f"step {event.step}/{event.steps}")

        run = preflight.check(settings)
        if settings.scaling.max_workers:
            from groundray.runtime.train import launch

            launch.fit(run, observe)
        else:  # without an import of Ray
            in_process.fit(run, observe)
        rest = steps[FIRST_FEW:]
        found = medians({name: [one[name] for one in rest] for name in rest[0]})
        last = [one["loss"] for one in steps[len(steps) // 2 :]]
        return {
            **{
                name: value
                for name, value in found.items()
                if name.startswith(("time/", "peak", "samples_per_second", "flop"))
            },
            "step": settings.stage("grounding").batch_size / found["samples_per_second"],
            "loss": sum(last) / len(last),
        }


def measure(
    preset: str,
    words: Sequence[str],
    data: str | None,
    workers: int,
    device: str | None,
    profile: str | None,
    session: Session,
) -> Report:
    """Run the benchmark `step`: in each round, each contender trains two epochs of a preset's grounding stage.

    Args:
        preset: a preset or YAML file whose grounding stage has a frozen trunk.
        words: settings that override it.
        data: folder of caption shards; None generates images.
        workers: number of workers of the contenders with Ray, 0 for none of them; the others use one process.
        device: `cpu` or `cuda`; None for the one of the settings.
        profile: folder or URL for a trace of each contender, from a run of its own; None for none.
        session: decides which rows there is time for. If its time is limited, there is no warm-up.

    Raises:
        SettingsError, FileNotFoundError, ValueError: the settings or shards are invalid.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groundray-bench-")))
        held_out, seen = folder / "held-out", data or str(folder / "seen")
        on_device = [f"--scaling.use_gpu={str(chosen_device(device) == 'cuda').lower()}"] if device else []
        settings = config.load(preset, [*_words(folder, seen, str(held_out)), *on_device, *words])
        if settings.stage("grounding").trains_trunk:
            raise ValueError(
                f"{preset}: expected a frozen trunk, got grounding.trains.trunk true: features need fixed weights"
            )
        fewest = FEWEST_STEPS * settings.stage("grounding").batch_size
        if data and (given := Dataset.open(data).rows) < fewest:
            raise ValueError(
                f"--data {data}: expected at least {fewest:,} images ({FEWEST_STEPS} batches), got {given:,}: give a "
                "smaller --grounding.batch_size"
            )
        photos = 0 if data else max(fewest, PHOTOS if session.limit is None else FEW_PHOTOS)
        session.note(f"generating {photos + HELD_OUT} images")
        write_photos(held_out, HELD_OUT)
        if photos:
            write_photos(Path(seen), photos)
        runs = {
            name: Run(one, tell=partial(_tell, session, name)) for name, one in contenders(settings, workers).items()
        }
        if workers:
            from groundray.runtime import cluster

            session.note("starting Ray")
            stack.enter_context(cluster.connect())
        # a run's first steps are not counted, and features are written before them: a warm-up changes little
        session.plan([Case(CASE, tuple(runs), warm_up=session.limit is None)])
        found: dict[str, dict[str, list[float]]] = {}
        with session.until_stopped():
            found |= session.interleaved(CASE, runs)
            for name in found if profile and not session.stopped else ():
                if (needs := session.expected(name, 1.0) or 0.0) > (left := session.left()):
                    reason = f"needs about {needs:.0f} s, {max(0.0, left):.0f} s were left for it"
                    session.leave_out(CASE, f"the profile of {name}", reason)
                    continue
                session.note(f"a profile of {name}, to {profile}")
                write_profile(runs[name].settings, Folder.at(str(profile)))
    case = {
        "trunk": settings.model.trunk.name,
        "language": settings.model.language.name,
        "batch": settings.stage("grounding").batch_size,
        "device": "cuda" if settings.scaling.use_gpu else "cpu",
        "precision": settings.stage("grounding").precision,
    }
    typical = {name: medians(of) for name, of in found.items()}
    baseline = BASELINE if BASELINE in typical else ALONE_PIXELS
    rows = []
    for name, figures in typical.items():
        if baseline in typical:
            figures["speed_of_images"] = figures["samples_per_second"] / typical[baseline]["samples_per_second"]
        rows.append(Row(case, name, figures, found[name]))
    if not settings.scaling.use_gpu:
        rows += [
            Row(case | {"device": "cuda"}, name, dict.fromkeys(("step", "samples_per_second"), NO_GPU)) for name in runs
        ]
    caption = (
        f"Grounding of preset {preset}: {case['trunk']}, {case['language']}, {case['precision']}, global batches of "
        f"{case['batch']}; with Ray on {workers} workers, without in one process. "
        "Medians over the steps of a run of two epochs, then over "
        "runs. Fractions of a step's time on rank 0; memory is the peak of the process. Loss: mean of the second epoch."
    )
    return Report("step", caption, COLUMNS, rows, machine())


def _tell(session: Session, name: str, far: str) -> None:
    session.tell(f"{CASE}: {name}, {far}", new=False)


def write_profile(settings: Settings, folder: Folder) -> None:
    """Train once more with a profile of some steps, and copy it to a folder."""
    changed = {"name": f"{settings.run.name}-profile", "profile": PROFILED}
    run = Run(Settings(**_with(settings, {"run": changed})))
    run()
    written = Folder.at(settings.run.storage) / f"{run.settings.run.name}-{run.number}" / layout.PROFILE
    written.copy(list(written.files()), folder / settings.run.name)


def contenders(settings: Settings, workers: int) -> Mapping[str, Settings]:
    """Return the settings of each contender: with trunk features and without, on Ray and in this process."""
    with_ray = {CACHED: ("auto", workers), PIXELS: ("never", workers)} if workers else {}
    ways = {ALONE: ("auto", 0), ALONE_PIXELS: ("never", 0)} | with_ray  # those that start faster come first
    return {
        name: Settings(
            **_with(
                settings,
                {
                    "run": {"name": name.replace(" ", "-").replace(",", "")},
                    "features": {"use": use},
                    "scaling": {"num_workers": number, "chunks": settings.chunks},
                },
            )
        )
        for name, (use, number) in ways.items()
    }


def _words(folder: Path, data: str, held_out: str) -> list[str]:
    return [
        "--stages=grounding",
        f"--run.storage={folder / 'runs'}",
        "--tracking.enabled=false",
        f"--grounding.train={data}",
        f"--grounding.val={held_out}",
        "--grounding.epochs=2",
    ]


def _with(settings: Settings, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings as a dict, with some values changed."""
    tree = settings.model_dump()
    for section, values in changes.items():
        tree[section] |= values
    return tree
