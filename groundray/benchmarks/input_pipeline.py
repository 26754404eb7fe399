"""The input pipeline: Ray Data against one process, groundray's decoding processes, and a DataLoader with as many.

All read the same rows in the plan's order and decode them with the same code. Then trunk features from local shards,
against pyarrow alone (`feature_reading.py`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from groundray.benchmarks import feature_reading
from groundray.benchmarks.measure import (
    Column,
    Report,
    Row,
    compared,
    cpu_between,
    cpu_seconds,
    machine,
    seconds,
    times,
)
from groundray.benchmarks.session import Case, Session
from groundray.data.captions import CaptionSamples
from groundray.data.decoding_processes import DecodingProcesses
from groundray.data.image_inputs import CentreCrop
from groundray.data.plan import Cursor, Plan
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.data.stream import Source, Step, assemble, decode, read, stream, windows
from groundray.data.tokenization import WordPieceTokenizer
from groundray.storage.folder import Folder

RAY, IN_PROCESS, PROCESSES, LOADER = "Ray Data", "one process", "decoding processes", "DataLoader"
PREFETCH = 2  # batches fetched ahead: by Ray Data in total, by a DataLoader in each process
FIRST_FEW = 4  # steps before samples per second are counted
RESIZE, CROP, PIECES = 256, 224, 32
PHOTOS, FEW_PHOTOS, WIDTH, HEIGHT = 1500, 640, 640, 480  # few where time is limited
CASE = Case("images", (RAY, IN_PROCESS, PROCESSES, LOADER))
COLUMNS = (
    Column("samples/s", lambda rate: f"{rate:,.0f}", ("samples_per_second",)),
    Column("first batch", seconds, ("first_batch",)),
    Column(f"samples/s of\n{LOADER}'s", times, ("rate_of_loader_least", "rate_of_loader", "rate_of_loader_most")),
    Column("CPU a sample:\nall, trainer", seconds, ("cpu_per_sample", "trainer_cpu_per_sample")),
    Column("GB/s of\nfeatures", lambda rate: f"{rate / 1e9:.2f}", ("bytes_per_second",)),
    Column("of pyarrow\nalone", times, ("rate_of_plain_least", "rate_of_plain", "rate_of_plain_most")),
    Column("CPU a GB", seconds, ("cpu_per_gb",)),
)


@dataclass(frozen=True)
class Stepwise(IterableDataset):
    """A source for a DataLoader. Each process reads the plan's windows and decodes every n-th step."""

    source: Source
    epochs: int

    def __iter__(self) -> Iterator[Step]:
        worker = get_worker_info()
        own, of = (worker.id, worker.num_workers) if worker else (0, 1)
        chunks = range(self.source.plan.chunks)
        number = 0
        for window in windows(self.source.plan, Cursor(), self.epochs):
            for step, table in read(self.source, window, chunks):
                if number % of == own:
                    yield assemble(self.source, window.epoch, step, chunks, decode(self.source, table))
                number += 1


def measure(
    data: str | None,
    batch_size: int,
    samples: int | None,
    cpus: int,
    session: Session,
) -> Report:
    """Run the benchmark `input`.

    Args:
        data: folder of caption shards; None generates images.
        samples: number of samples in a run, rounded up to whole batches; None for two epochs, of fewer images if the
            session's time is limited.
        cpus: number of CPUs for reading and decoding.
        session: decides which rows there is time for.

    Raises:
        FileNotFoundError, ValueError: the shards do not exist, or the samples are fewer than a few batches.
    """
    rows: list[Row] = []
    feature_rows: list[Row] = []
    session.plan([feature_reading.CASE, CASE])
    with ExitStack() as stack:
        if data is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="groundray-bench-"))
            photos = PHOTOS if session.limit is None else FEW_PHOTOS
            session.note(f"generating {photos} images of {WIDTH} x {HEIGHT}")
            data = str(write_photos(Path(folder), photos).folder)
        source = training_source(Dataset.open(data, "captions"), batch_size)
        steps = -(-samples // batch_size) if samples else 2 * source.plan.steps
        if session.limit is not None:
            steps = min(steps, -(-2 * FEW_PHOTOS // batch_size))
        if steps <= FIRST_FEW + 1:
            raise ValueError(f"expected more than {FIRST_FEW + 1} batches of {batch_size} samples, got {steps}")
        epochs = -(-steps // source.plan.steps)
        from groundray.runtime import cluster  # imports Ray, which drawn photos do without

        session.note("starting Ray")
        stack.enter_context(cluster.connect(num_cpus=cpus))
        stack.enter_context(session.until_stopped())
        case: dict[str, int | str] = {"samples": steps * batch_size, "batch": batch_size, "cpus": cpus}
        with tempfile.TemporaryDirectory(prefix="groundray-bench-") as features:
            session.note("writing trunk features")
            featured = feature_reading.with_features(
                source, *feature_reading.write_features(Path(features)), batch_size
            )
            feature_rows += feature_reading.measure(featured, cpus, session, case)
        runs = session.interleaved(
            CASE.title, {name: timed(begin, steps, batch_size) for name, begin in streams(source, epochs, cpus).items()}
        )
        rows += [
            Row(case, name, *compared(figures, runs.get(LOADER), "samples_per_second", "rate_of_loader"))
            for name, figures in runs.items()
        ]
    caption = (
        f"Captioned images of {CROP} pixels, batches of {batch_size}, read and decoded on {cpus} CPUs: by Ray Data on "
        f"a running cluster with idle workers, by {cpus} processes of a run without Ray, which start after the first "
        f"batch, and by {cpus} processes of a DataLoader, forked for each run. Samples per second after the first "
        f"{FIRST_FEW} batches, and least, median and greatest ratio to {LOADER}'s of the same round; CPU time of all "
        "processes, and of the one that trains, from the start on. Features: maps of 200 kB in local shards, with a "
        "thread for each CPU; the first epoch compares checksums, as pyarrow does where that is said."
    )
    return Report("input", caption, COLUMNS, [*rows, *feature_rows], machine())


def streams(source: Source, epochs: int, cpus: int) -> Mapping[str, Callable[[], Iterator[Step]]]:
    """Return each contender as a function that streams all steps of some epochs."""
    from groundray.runtime.data.ray_stream import (
        stream as ray_stream,
    )  # brings Ray Data, which the cluster has made quiet
    from groundray.runtime.train.resources import DataCpuBudget

    return {
        RAY: lambda: ray_stream(
            source, Cursor(), epochs, rank=0, world_size=1, cpu_budget=DataCpuBudget(cpus, cpus), prefetch=PREFETCH
        ),
        IN_PROCESS: lambda: stream(source, Cursor(), epochs),
        PROCESSES: lambda: decoded(source, epochs, cpus),
        LOADER: lambda: iter(
            DataLoader(
                Stepwise(source, epochs),
                batch_size=None,
                num_workers=cpus,
                prefetch_factor=PREFETCH,
                multiprocessing_context="fork",
            )
        ),
    }


def decoded(source: Source, epochs: int, processes: int) -> Iterator[Step]:
    """Yield the steps of a run without Ray, whose processes start after the first step."""
    with contextlib.closing(DecodingProcesses(processes, PREFETCH, worth_seconds=0)) as decoding:
        yield from decoding.stream(source, Cursor(), epochs)


def timed(begin: Callable[[], Iterator[Step]], steps: int, batch_size: int) -> Callable[[], dict[str, float]]:
    """Return a run of `steps` steps that measures seconds to the first batch, samples per second after the first few
    batches, and CPU seconds a sample from its start on, of this process and of all that it has started: contenders
    differ in how much they decode before the first batch."""

    def run() -> dict[str, float]:
        cpu, own, started = cpu_seconds(), time.process_time(), time.perf_counter()
        arrivals: list[float] = []
        cpu_used = own_used = 0.0
        for _ in itertools.islice(begin(), steps):
            arrivals.append(time.perf_counter())
            if len(arrivals) == steps:  # before the processes end
                cpu_used, own_used = cpu_between(cpu, cpu_seconds()), time.process_time() - own
        rest = arrivals[FIRST_FEW:]
        return {
            "first_batch": arrivals[0] - started,
            "samples_per_second": (len(rest) - 1) * batch_size / (rest[-1] - rest[0]),
            "cpu_per_sample": cpu_used / (steps * batch_size),
            "trainer_cpu_per_sample": own_used / (steps * batch_size),
        }

    return run


def training_source(dataset: Dataset, batch_size: int) -> Source:
    """Return the source of the grounding stage's training: shuffled windows, and a random caption at each visit."""
    samples = CaptionSamples(WordPieceTokenizer(spelling().to_str(), PIECES), CentreCrop(RESIZE, CROP), seed=0)
    return Source(dataset, samples, Plan(dataset.group_sizes, batch_size))


def spelling() -> Tokenizer:
    """Return a BERT tokenizer whose word pieces are letters. It costs as much as others, and needs no download."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(special, pieces.index(special)) for special in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def write_photos(folder: Path, count: int) -> Dataset:
    """Write shards of JPEG files that are as large and as costly to decode as photos of COCO (640 x 480, about 130 kB).

    Each image is a window of one noise image whose amplitude falls with frequency, as in photos.
    """
    generator = np.random.default_rng(0)
    side = 4 * WIDTH
    canvas = sum(
        (scaled(generator.standard_normal((side // grain, side // grain, 3)), side) * strength)
        for grain, strength in ((256, 45.0), (64, 25.0), (16, 14.0), (4, 12.0), (1, 9.0))
    )
    pixels = np.clip(canvas + 128, 0, 255).astype(np.uint8)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(count):
            top, left = generator.integers(0, (side - HEIGHT, side - WIDTH))
            file = io.BytesIO()
            Image.fromarray(pixels[top : top + HEIGHT, left : left + WIDTH]).save(file, "JPEG", quality=90)
            yield {
                "id": str(number),
                "image": file.getvalue(),
                "width": WIDTH,
                "height": HEIGHT,
                "captions": [f"a photo of noise, number {number}, seen {times} times" for times in range(5)],
            }

    return write_shards(Folder.at(folder).make(), "captions", rows(), {}, {"noise": count})


def scaled(noise: np.ndarray, side: int) -> np.ndarray:
    """Resize noise [row column channel] to `side` pixels with bicubic interpolation."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in noise.transpose(2, 0, 1)]
    return np.stack(
        [np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels], axis=-1
    )
