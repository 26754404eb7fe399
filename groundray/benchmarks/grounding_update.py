"""An optimizer step of the grounding stage alone, from trunk features: no data, no tokenizer, no Ray.

The batches are random and lie on the device already, so that nothing but the step is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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
    interleaved,
    machine,
    medians,
    seconds,
)
from groundray.benchmarks.product_rate import SIDES, product_rate
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
STEPS = 5  # of a round
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

    Attributes:
        flops: multiplications and additions of a step's matrix products and match maps.
    """

    def __init__(self, settings: Settings, model: GroundedModel, way: Way, device: str):
        self._settings, self._way, self._device = settings, way, device
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
        """Do STEPS steps. Returns the mean seconds of one, its rates, fractions of its time, and the peak of memory."""
        samples = self._stage.settings.batch_size
        with self._arithmetic():
            timer = StepTimer(self._device)
            for _ in range(STEPS):
                self._update(timer)
            found = timer.end_step(samples * STEPS).metrics()
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
    precisions: Sequence[Precision],
    device: str | None,
    profiles: str | None,
    repeats: int,
    max_seconds: float,
    note: Callable[[str], None],
) -> Report:
    """Run the benchmark `update`.

    Args:
        preset: a preset or YAML file whose grounding stage has a frozen trunk.
        words: settings that override it.
        batches: batch sizes, each one chunk unless `words` say otherwise.
        precisions: each with deterministic algorithms, and on a GPU without.
        device: `cpu` or `cuda`; None for cuda if there is one.
        profiles: folder or URL for a table of the operators of each contender's step; None for none.
        max_seconds: time of a contender after which no further round starts.
        note: receives a line about each step.

    Raises:
        SettingsError, ValueError: the settings are invalid.
    """
    chosen = chosen_device(device)
    rows: list[Row] = []
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
        for precision in precisions:
            case = {"device": chosen, "batch": batch, "precision": precision}
            # deterministic first: cuBLAS must know before its first product
            for deterministic in (True, False) if chosen == "cuda" else (True,):
                way = Way(precision, deterministic)
                note(f"update: batch {batch} in {settings.chunks} chunks, {chosen}, {precision}, {way}")
                # its memory is free before the next one's is taken
                rows.append(_row(case, Update(settings, model, way, chosen), way, repeats, max_seconds, profiles))
    caption = (
        f"Grounding of preset {preset} from random trunk features, captions of {MEAN_TOKENS} tokens on average; random "
        f"weights. Of a product: the rate as a fraction of that of one product of {SIDES[chosen]} x {SIDES[chosen]} "
        "matrices. Memory: the peak of the GPU, or of the process."
    )
    return Report("update", caption, COLUMNS, rows, machine())


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


def _row(
    case: Mapping[str, int | str], step: Update, way: Way, repeats: int, max_seconds: float, profiles: str | None
) -> Row:
    """Measure a contender, alone on the device."""
    if profiles:
        name = f"{case['batch']}-{way.precision}-{way}.txt".replace(" ", "-")
        Folder.at(profiles).make().write_bytes(name, step.profile().encode())
    if case["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = interleaved({str(way): step}, repeats, max_seconds)[str(way)]
    figures = medians(runs)
    rates = {"of_product": _product_rate(str(case["device"]), way.precision)}
    if case["device"] == "cuda" and (peak := peak_flops(torch.cuda.get_device_name(), way.precision)):
        rates["of_peak"] = peak
    of_rates = {name: figures["flops_per_second"] / rate for name, rate in rates.items()}
    return Row(case, str(way), {**figures, **of_rates}, runs)


def _product_rate(device: str, precision: Precision) -> float:
    half = precision == "bf16" and device == "cuda"
    with arithmetic.using(precision, device):
        return product_rate(device, torch.bfloat16 if half else torch.float32)
