"""An optimizer step of the grounding stage alone, from trunk features: no data, no tokenizer, no Ray.

The batches are random and lie on the device already, so that nothing but the step is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from groundray import arithmetic, config
from groundray.arithmetic import Precision
from groundray.benchmarks.measure import (
    Column,
    Report,
    Row,
    chosen_device,
    machine,
    medians,
    seconds,
)
from groundray.benchmarks.product_rate import SIDES, product_rate
from groundray.benchmarks.session import Case, Session, Turns
from groundray.config import Settings
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.lora import add_adapters
from groundray.stage.grounding import GroundingStage
from groundray.storage.folder import Folder
from groundray.training.loop import update
from groundray.training.optimizer import make_optimizer
from groundray.training.peak_flops import peak_flops
from groundray.training.timing import StepTimer, flop_counter

MEAN_TOKENS, SHORTEST = 14, 5  # of a caption, with [CLS] and [SEP]
STEPS = 5  # of a round; one takes milliseconds on a GPU
STEP = "a step"
PARTS = ("forward", "backward", "optimizer")
COLUMNS = (
    Column("a step", seconds, ("step",)),
    Column("samples/s", lambda rate: f"{rate:,.0f}", ("samples_per_second",)),
    *(
        Column(part, lambda fraction: f"{fraction:.1%}", (f"time/{part}",))
        for part in ("forward", "backward", "optimizer")
    ),
    Column("TFLOP/s", lambda rate: f"{rate / 1e12:,.1f}", ("flops_per_second",)),
    Column("of the data\nsheet's peak", lambda fraction: f"{fraction:.1%}", ("of_peak",)),
    Column("of a\nproduct", lambda fraction: f"{fraction:.1%}", ("of_product",)),
    Column("memory", lambda size: f"{size:.2f} GB", ("peak_memory_gb",)),
)


class Way(NamedTuple):
    """How a contender computes."""

    precision: Precision
    deterministic: bool

    def __str__(self) -> str:
        return "deterministic" if self.deterministic else "not deterministic"


class Update:
    """A grounding stage, a copy of a model with its optimizer, and a random batch, on a device.

    Args:
        steps: number of steps of a call.

    Attributes:
        flops: multiplications and additions of a step's matrix products and match maps.
    """

    def __init__(self, settings: Settings, model: GroundedModel, way: Way, device: str, steps: int):
        self._settings, self._way, self._device, self._steps = settings, way, device, steps
        stage = settings.stage("grounding").model_copy(update={"precision": way.precision})
        no_data = cast(Source, None)
        self._stage = GroundingStage(stage, no_data, no_data)
        self._model = copy.deepcopy(model).to(device)
        self._stage.prepare(self._model)
        add_adapters(self._model, self._stage.name, stage.trains)
        self._batch = random_step(settings, model).to(device)
        self._optimizer = make_optimizer(self._model, stage.optimizer)
        with self._arithmetic(), (counter := flop_counter()):
            self._update(StepTimer(device))
        self.flops = counter.get_total_flops()

    def _arithmetic(self) -> Any:
        return arithmetic.using(self._way.precision, self._device, self._way.deterministic)

    def _update(self, timer: StepTimer) -> None:
        accumulate = self._settings.scaling.accumulate
        update(self._stage, self._model, self._optimizer, self._batch, self._settings.run.seed, accumulate, timer)

    def __call__(self) -> dict[str, float]:
        """Do some steps. Returns the mean seconds of one, its rates, fractions of its time, and the peak of memory."""
        samples = self._stage.settings.batch_size
        with self._arithmetic():
            timer = StepTimer(self._device)
            for _ in range(self._steps):
                self._update(timer)
            found = timer.end_step(samples * self._steps).metrics()
        step = samples / found["samples_per_second"]
        return {**found, "step": step, "flops_per_second": self.flops / step}

    def profile(self) -> str:
        """Return a table of the operators of a step, those that take longest first."""
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device == "cuda" else [])]
        with self._arithmetic(), profile(activities=kinds) as seen:
            self._update(StepTimer(self._device))
            if self._device == "cuda":
                torch.cuda.synchronize()
        order = "self_device_time_total" if self._device == "cuda" else "self_cpu_time_total"
        return seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70)


def measure(
    preset: str,
    words: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[Precision] | None,
    device: str | None,
    profiles: str | None,
    session: Session,
) -> Report:
    """Run the benchmark `update`.

    Args:
        preset: a preset or YAML file whose grounding stage has a frozen trunk.
        words: settings that override it.
        batches: batch sizes, each one chunk unless `words` say otherwise.
        precisions: each with deterministic algorithms, and on a GPU without; None for bf16 on a GPU, and float32 on a
            CPU, whose bf16 may be emulated.
        device: `cpu` or `cuda`; None for cuda if there is one.
        profiles: folder or URL for a table of the operators of each contender's step; None for none.
        session: decides which rows there is time for. If it is limited, a round on a CPU is one step.

    Raises:
        SettingsError, ValueError: the settings are invalid.
    """
    chosen = chosen_device(device)
    rows: list[Row] = []
    # deterministic first: cuBLAS must know before its first product
    precisions = precisions or (["bf16"] if chosen == "cuda" else ["float32"])
    steps = 1 if chosen == "cpu" and session.limit is not None else STEPS
    ways = [Way(one, deterministic) for one in precisions for deterministic in (True, False)[: 1 + (chosen == "cuda")]]
    session.plan([Case(_title(batch, way), (STEP,), batch) for batch in batches for way in ways])
    with session.until_stopped():
        for batch in batches:
            one = ["--stages=grounding", "--scaling.num_workers=1", "--scaling.chunks=1"]
            settings = config.load(preset, [*one, *words, f"--grounding.batch_size={batch}"])
            if settings.stage("grounding").trains_trunk:
                raise ValueError(
                    f"{preset}: expected a frozen trunk, got grounding.trains.trunk true: features need fixed weights"
                )
            torch.manual_seed(settings.run.seed)
            model = build_model(settings.model, pretrained=False)
            model.heads["grounding"] = build_head("grounding", settings.model, model, {})
            for way in ways:
                case = {"device": chosen, "batch": batch, "precision": way.precision}
                # its memory is free before the next one's is taken
                rows += _rows(
                    case,
                    session.begin(_title(batch, way)),
                    partial(_warm, settings, model, way, chosen, steps),
                    profiles,
                )
    caption = (
        f"Grounding of preset {preset} from random trunk features, captions of {MEAN_TOKENS} tokens on average; random "
        f"weights. Of a product: the rate as a fraction of that of one product of {SIDES[chosen]} x {SIDES[chosen]} "
        "matrices. Memory: the peak of the GPU, or of the process."
    )
    return Report("update", caption, COLUMNS, rows, machine(), ("batch", "precision"))


def random_step(settings: Settings, model: GroundedModel) -> Step:
    """Return a random global batch of trunk features and captions, the same at every call."""
    numbers = np.random.default_rng(0)
    batch, longest = settings.stage("grounding").batch_size, settings.stage("grounding").max_tokens
    shape = model.visual.trunk.shape
    chunks = []
    for chunk, rows in enumerate(np.array_split(np.arange(batch), settings.chunks)):
        maps = numbers.standard_normal((len(rows), *shape), np.float32).clip(0)
        bits = (maps.view(np.uint32) >> 16).astype(np.uint16)  # of bfloat16
        tokens = numbers.integers(1, model.language.encoder.config.vocab_size, (len(rows), longest), np.int32)
        lengths = numbers.integers(SHORTEST, 2 * MEAN_TOKENS - SHORTEST + 1, len(rows)).clip(max=longest)
        chunks.append((chunk, CaptionBatch.of([str(row) for row in rows], bits, tokens, lengths)))
    return Step(0, 0, False, tuple(chunks))


def _title(batch: int, way: Way) -> str:
    return f"batch {batch}, {way.precision}, {way}"


def _warm(settings: Settings, model: GroundedModel, way: Way, device: str, steps: int) -> tuple[Update, Way]:
    """Return a contender that has done some steps: one to count its products, and a round unless that is one too."""
    step = Update(settings, model, way, device, steps)
    if steps > 1:
        step()
    return step, way


def _rows(
    case: Mapping[str, int | str], turns: Turns, warm: Callable[[], tuple[Update, Way]], profiles: str | None
) -> list[Row]:
    """Measure a contender, alone on the device. Returns its row, none if it is left out."""
    warmed = turns.first(STEP, warm)
    if warmed is None:
        return []
    step, way = warmed
    if profiles:
        name = f"{case['batch']}-{way.precision}-{way}.txt".replace(" ", "-")
        Folder.at(profiles).make().write_bytes(name, step.profile().encode())
    rates = {"of_product": _product_rate(str(case["device"]), way.precision)}
    if case["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = turns.rounds({STEP: step}).get(STEP)
    if runs is None:
        return []
    figures = medians(runs)
    if case["device"] == "cuda" and (peak := peak_flops(torch.cuda.get_device_name(), way.precision)):
        rates["of_peak"] = peak
    of_rates = {name: figures["flops_per_second"] / rate for name, rate in rates.items()}
    return [Row(case, str(way), {**figures, **of_rates}, runs)]


def _product_rate(device: str, precision: Precision) -> float:
    half = precision == "bf16" and device == "cuda"
    with arithmetic.using(precision, device):
        return product_rate(device, torch.bfloat16 if half else torch.float32)
