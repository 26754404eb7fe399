"""The settings of a training run: typed, frozen and described.

Settings that cannot work together fail here, before any worker starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from groundray.config.embedded_world import in_preset
from groundray.credentials import redacted, refusal, without_secrets
from groundray.storage.local_path import expanded

SECRET = "secret"  # pydantic's type of the error of a setting with a secret
StageName = Literal["visual", "language", "grounding", "relational", "retrieval"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
TrackerName = Literal["mlflow", "tensorboard", "wandb"]
Initialization = Literal["identity", "pytorch"]
# as `ray.util.accelerators` names NVIDIA's
AcceleratorType = Literal[
    "P4", "K80", "P100", "V100", "T4", "A10G", "L4", "L40S", "RTX-PRO-6000",
    "A100", "A100-40G", "A100-80G", "H20", "H100", "H200", "B200", "B300", "GB200", "GB300",
]  # fmt: skip
Precision = Literal["float32", "tf32", "bf16", "float64"]
OperatorInitialization = Literal["normal", "xavier"]
LEAST_LEARNED_TEMPERATURE = 0.01  # CLIP's: a logit scale of at most 100
MODEL_URIS = ("models:/", "runs:/")  # beginnings of MLflow's names of models


class Added:
    """Marks a setting that earlier versions lack. At its default it is no part of a run's identity."""


ADDED = Added()


class SettingsError(ValueError):
    """Raised for settings that cannot be used. The message names the setting, what was expected, and a repair. It hides
    secrets."""

    def __init__(self, message: str):
        super().__init__(redacted(message))


class Section(BaseModel):
    """Base class of a group of settings. Its docstring is the help text of the group."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(Section):
    """Name, storage and start of the run. The same name and storage resume it."""

    name: str = Field(
        default="run", pattern=r"^[\w][\w.\-]*$", description="name of the run, and of its folder in `storage`"
    )
    storage: str = Field(default="runs", min_length=1, description="path or URL of the folder that holds all runs")
    seed: int = Field(default=0, ge=0, description="seed of all random numbers, at least 0")
    start_from: str | None = Field(
        default=None,
        description="path or URL of another run's model/ folder, or a model in MLflow (models:/NAME/VERSION, "
        "models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/model), to start from its streams and heads",
    )
    start_alias: Annotated[str | None, ADDED] = Field(
        default=None,
        description="name in MLflow that was given for `start_from`, where that is now the version it stood for when "
        "the run began; the run fills it in",
    )
    start_files: Annotated[str | None, ADDED] = Field(
        default=None, description="path or URL of the files of a `start_from` in MLflow; the run fills it in"
    )
    start_stage: StageName | None = Field(
        default=None, description="stage of the `start_from` model to start from; null: its last stage"
    )
    continue_from: Annotated[str | None, ADDED] = Field(
        default=None,
        description="path or URL of a checkpoint of another run (RUN/checkpoints/NAME), whose weights, moments of the "
        "optimizer and position in the epochs the run's first stage continues with its own settings",
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop", description="action on a non-finite loss or gradient: end the run, or skip the step"
    )
    profile: int = Field(
        default=0,
        ge=0,
        description="steps of each stage to profile on rank 0, at least 0: a trace, and on a GPU a memory snapshot, "
        "are written to profile/",
    )
    log_samples: bool = Field(default=False, description="record the sample ids of each step in history/")
    programs: bool = Field(
        default=True,
        description="add programs of the stages grounding and retrieval to the exported model, which torch opens "
        "without groundray; takes seconds",
    )

    @property
    def start_folder(self) -> str | None:
        """Path or URL of the files of the model to start from; None if there is none."""
        return self.start_files if self.start_from and is_model_uri(self.start_from) else self.start_from


def _workers(value: Any) -> int | tuple[int, int]:
    """Return a number of workers, or the minimum and maximum. The command line gives either as a list of strings."""
    numbers = value if isinstance(value, list | tuple) else [value]
    try:
        counts = tuple(int(str(number)) for number in numbers)
    except ValueError:
        counts = ()
    if len(counts) == 1 and counts[0] >= 0:
        return counts[0]
    if len(counts) == 2 and 1 <= counts[0] <= counts[1]:
        return counts[0], counts[1]
    raise ValueError(f"expected a number of workers, or [MIN, MAX], got {value!r}")


class Scaling(Section):
    """Workers and their resources. Only `chunks` and `compile` change results; the rest may differ each time a run
    resumes."""

    num_workers: Annotated[int | tuple[int, int], BeforeValidator(_workers)] = Field(
        default=1,
        description="number of training workers, or [MIN, MAX] for as many as the cluster has room for; "
        "0 trains in this process, without Ray",
    )
    chunks: int | None = Field(
        default=None,
        ge=1,
        description="parts of a global batch, each encoded at once, at least 1; sizes differ by one sample at most; "
        "null: the maximum number of workers",
    )
    use_gpu: bool = Field(default=False, description="train on GPUs, one per worker")
    accelerator_type: AcceleratorType | None = Field(
        default=None,
        description="type of the GPUs, by Ray's name for it, where a cluster has several; null: any type",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per worker for tensor operations, at least 1; a fixed number makes float32 results "
        "equal on any number of workers; null: the machine's cores divided by its workers",
    )
    deterministic: bool = Field(
        default=True,
        description="on a GPU, the same bits each time: a run that was killed ends with the same weights. false: the "
        "fastest algorithms, whose sums differ from one time to the next. A CPU computes the same bits in both cases",
    )
    compile: bool = Field(
        default=False,
        description="compile the spatial attention and the language encoder (torch.compile) at the start: fewer, "
        "larger operations, other rounding; needs a C++ compiler on every node",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only the inputs of the spatial attention and of each language layer, and compute the rest "
        "again in the backward pass: less memory, the same bits",
    )
    accumulate: bool = Field(
        default=False,
        description="keep the autograd graph of one chunk at a time: needs the memory of one chunk, and a second "
        "forward pass; a run whose GPU does not hold the graphs of a worker's chunks turns it on by itself",
    )
    cpus_per_worker: float = Field(
        default=1.0, gt=0, description="CPUs that Ray reserves per training worker, more than 0"
    )
    max_failures: int = Field(
        default=3, ge=0, description="consecutive failures without a new step before the run ends, at least 0"
    )
    wait_minutes: Positive = Field(
        default=60.0, description="timeout in minutes for workers to become available, more than 0"
    )
    peak_tflops: Positive | None = Field(
        default=None,
        description="peak rate of a GPU in the stages' precision, in 10^12 dense operations per second, more than 0, "
        "for the metric `flop_utilisation`; null: the data sheet's, for GPUs that groundray knows",
    )
    hang_minutes: Positive = Field(
        default=10.0,
        description="heartbeat timeout in minutes, more than 0: a worker that exceeds it is ended, and its stack "
        "traces and last collectives are written to stacks/",
    )

    @model_validator(mode="after")
    def _has_gpus(self) -> Self:
        if self.accelerator_type and not self.use_gpu:
            raise ValueError(
                f"accelerator_type: expected use_gpu true with it, got {self.accelerator_type} and use_gpu false"
            )
        return self

    @property
    def min_workers(self) -> int:
        """Smallest number of workers."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Largest number of workers."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class Checkpoints(Section):
    """Checkpoint intervals, and which checkpoints are kept. Every validation writes a checkpoint, whatever the
    interval."""

    every_minutes: Positive = Field(default=5.0, description="minutes between checkpoints, more than 0")
    every_steps: Count | None = Field(
        default=None, description="steps between checkpoints, at least 1; null: only by time"
    )
    keep_every: Count | None = Field(
        default=None,
        description="keep the checkpoint of every so many-th validation of a stage, at least 1, beside the last and "
        "the best; null: none",
    )


class Data(Section):
    """Shuffling and reading of samples."""

    window: Count | None = Field(
        default=None,
        description="samples of the epoch's order that are shuffled and read together, at least 1, in stages without a "
        "`window` of their own; null: 4096, or as many more as an epoch needs to read at most 1.3 times its data. A "
        "run keeps the window that it began with",
    )
    prefetch: Count = Field(default=2, description="batches read ahead per worker, at least 1")
    processes: int | None = Field(
        default=None,
        ge=0,
        description="processes that decode images for a run without Ray, at least 0; 0 decodes in the training "
        "process; null: one per CPU (`scaling.threads`, or the machine's), none where a CPU alone also trains. They "
        "start where more than a few seconds of decoding are left",
    )
    jpeg_decoding: Literal["cpu", "gpu"] = Field(
        default="cpu",
        description="gpu: each worker's GPU decodes and crops baseline JPEGs with nvJPEG, ahead of the step; other "
        "pictures are decoded on CPUs. Pixels differ a little from those of a CPU; needs `scaling.use_gpu`",
    )


class Features(Section):
    """Cached feature maps of a frozen trunk: computed once, then read in place of images."""

    use: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: cache where features replace images exactly (frozen trunk, no random crop), up to "
        "bfloat16 rounding, and where they fit on the disk and into `features.max_gb`",
    )
    folder: str | None = Field(
        default=None,
        min_length=1,
        description="path or URL of the cache; null: .features in `run.storage`, shared by its runs",
    )
    keys: Annotated[Literal["auto", "never"], ADDED] = Field(
        default="auto",
        description="auto: also cache what the heads of retrieval take, keys of images and queries of all captions, in "
        "float32, where it reads trunk features on CPUs and visits at least as many captions as there are",
    )
    max_gb: Positive | None = Field(
        default=None,
        description="size of the cache in GB, more than 0; before new features are made, the least recently used ones "
        "that no active run reads are deleted to keep it; null: no limit",
    )


def _trunk(name: str) -> str:
    if name in ("vgg16", "efficientnet_lite0", "tiny") or (name.startswith("timm/") and name != "timm/"):
        return name
    raise ValueError(f"expected vgg16, efficientnet_lite0, tiny or timm/NAME, a model of timm, got {name!r}")


class Trunk(Section):
    """The network of the visual stream, from pixels to a grid of features."""

    name: Annotated[str, AfterValidator(_trunk)] = Field(
        default="vgg16",
        description="`vgg16`, `efficientnet_lite0` (needs the extra `pretrained`), `tiny` (for the embedded world), or "
        "`timm/NAME`, a convolutional model or vision transformer of timm (needs the extra `models`)",
    )
    weights: str = Field(
        default="published",
        description="`published`, `none` (random initialization), or the path or URL of a weight file",
    )


class Language(Section):
    """The language stream, an encoder of `transformers`."""

    name: str = Field(
        default="bert-base-uncased",
        description="encoder: `tiny`, `minilm` (needs the extra `pretrained`), or a name on the hub, a folder or a URL "
        "of BERT, RoBERTa, DistilBERT, ModernBERT, DeBERTa, ELECTRA, MPNet, or a CLIP or SigLIP with its text tower",
    )
    weights: str = Field(
        default="published",
        description="`published`, `none` (random initialization; a folder then needs no weights), or the folder or URL "
        "of a model of the same architecture",
    )
    tokenizer: str | None = Field(
        default=None, description="folder, URL or hub name of the tokenizer; null: the model's own"
    )
    layers: Count = Field(default=2, description="number of layers of `tiny`, at least 1")
    width: Count = Field(default=128, description="hidden size of `tiny`, a multiple of `heads`")
    heads: Count = Field(default=4, description="attention heads of `tiny`, at least 1")


class RelationalModule(Section):
    """The module that the relational stage adds to the streams."""

    attention_heads: Count = Field(
        default=8, description="heads of the cross-modal attention; must divide the language stream's width"
    )
    space: Count = Field(default=32, description="dimensions of the relation space, at least 1")
    hidden: Count = Field(default=256, description="hidden units of the object classifier, at least 1")
    operator_initialization: OperatorInitialization = Field(
        default="normal",
        description="initialization of the predicates' operators: normal, of standard deviation 1, or xavier, of about "
        "0.02, as in the authors' code. Operators are normalized in use: the smaller they are, the faster a learning "
        "rate turns them. At 1e-5, those of `normal` do not move",
    )


class Model(Section):
    """Both streams, and the sizes of the modules that stages add. The language stream sets the width of both."""

    image_size: Count = Field(default=224, description="height and width of the visual stream's input, in pixels")
    trunk: Trunk = Trunk()
    language: Language = Language()
    attention_heads: Count = Field(
        default=12, description="heads of the spatial attention; must divide the language stream's width"
    )
    attention_ffn: Count = Field(
        default=3072, description="hidden units of the spatial attention's feed-forward network, at least 1"
    )
    classifier: int = Field(
        default=4096,
        ge=0,
        description="hidden units of the visual stage's classifier; 0: a linear classifier on the maximum over all "
        "positions",
    )
    classifier_input: Annotated[Literal["image", "position"], ADDED] = Field(
        default="image",
        description="what the visual stage's classifier sees. image: all positions, pooled; position: each position "
        "alone, and a class has the maximum of its logits, for images that show several classes",
    )
    initialization: Initialization = Field(
        default="identity",
        description="initialization of new layers. identity: the grounding heads and the cross-modal attention pass "
        "embeddings on unchanged, both branches of the spatial attention are 0, its positions are sines and cosines; "
        "pytorch: PyTorch's own, as in the authors' code",
    )
    relational: RelationalModule = RelationalModule()


class Optimizer(Section):
    """The optimizer, the learning rates of the model's parts, and their course over the stage."""

    kind: Literal["adam", "adamw", "sgd"] = Field(
        default="adam", description="Adam, AdamW (Adam with decoupled weight decay), or SGD with momentum"
    )
    lr: Positive = Field(default=5e-5, description="learning rate, more than 0")
    trunk_lr: Annotated[Positive | None, ADDED] = Field(
        default=None, description="learning rate of the visual trunk, where it is trained, more than 0; null: `lr`"
    )
    language_lr: Positive | None = Field(
        default=None,
        description="learning rate of the language stream, more than 0, for a pretrained one beside new modules; "
        "null: `lr`",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1), ADDED] = Field(
        default=1.0,
        description="factor of the learning rate from each layer of the language stream to the one below it, in (0, "
        "1]: the last one has `language_lr`, the embeddings below all layers the lowest rate",
    )
    trunk_layer_decay: Annotated[float, Field(gt=0, le=1), ADDED] = Field(
        default=1.0,
        description="factor of the learning rate from each layer of the visual trunk to the one below it, where the "
        "trunk is trained, in (0, 1]: the last one has `trunk_lr`, what comes before all layers the lowest rate",
    )
    head_lr: Annotated[Positive | None, ADDED] = Field(
        default=None, description="learning rate of the stage's head, more than 0; null: `lr`"
    )
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999), description="Adam's decay rates of both moment estimates, each in [0, 1)"
    )
    momentum: Fraction = Field(default=0.9, description="momentum of SGD, in [0, 1)")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="adam, sgd: L2 penalty, added to the gradient of all parameters but scalars (a temperature); "
        "adamw: fraction of the learning rate by which weights shrink at each step, but for parameters of fewer than "
        "two dimensions (biases, norms, a temperature). At least 0",
    )
    schedule: Annotated[Literal["halve", "cosine", "linear", "step", "constant"], ADDED] = Field(
        default="halve",
        description="course of the learning rates after the warm-up: halved every `halve_every` epochs, a fall to "
        "`final_fraction` along half a cosine or a line, a step down at each of `milestones`, or constant",
    )
    halve_every: Count = Field(default=15, description="epochs between halvings of the learning rate, at least 1")
    first_epoch: Literal[0, 1] = Field(
        default=0,
        description="number of the first epoch: epochs `halve_every`, 2 x `halve_every`, ... halve the learning rate. "
        "Counted from 0, the first halving follows `halve_every` epochs; from 1, one epoch less",
    )
    final_fraction: Annotated[float, Field(ge=0, le=1), ADDED] = Field(
        default=0.0,
        description="cosine, linear: fraction of the learning rate that the stage's end would reach, in [0, 1]",
    )
    milestones: Annotated[tuple[Positive, ...], ADDED] = Field(
        default=(),
        description="step: epochs after which the learning rate is multiplied by `factor`, ascending, such as 30,60 or "
        "0.5",
    )
    factor: Annotated[float, Field(gt=0, le=1), ADDED] = Field(
        default=0.1, description="step: factor of the learning rate at each milestone, in (0, 1]"
    )
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up to the learning rate, at least 0")
    ema: Annotated[float | None, Field(gt=0, lt=1), ADDED] = Field(
        default=None,
        description="decay of a moving average of the weights, in (0, 1), such as 0.999: the average is validated, "
        "handed on and exported in place of the weights, which are trained on; null: none",
    )

    @model_validator(mode="after")
    def _fits_the_schedule(self) -> Self:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones: expected at least one epoch with schedule step, and none with another, got "
                f"{list(self.milestones)} with {self.schedule}: set both, or neither"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: expected ascending epochs, got {list(self.milestones)}")
        if self.final_fraction and self.schedule not in ("cosine", "linear"):
            raise ValueError(
                f"final_fraction: expected schedule cosine or linear with it, got {self.schedule}: set one of them, or "
                "leave final_fraction out"
            )
        return self


class TrainedVisual(Section):
    """The parts of the visual stream that a stage trains. Other parts are frozen and run in eval mode."""

    trunk: bool = Field(default=False, description="train the trunk")
    attention: bool = Field(default=True, description="train the embedder and the spatial attention")


class Lora(Section):
    """Low-rank adapters (LoRA) of the language stream's trained layers, whose own weights stay frozen. They are merged
    into these weights at the end of the stage. Needs the extra `models`."""

    rank: Count = Field(default=8, description="rank of the adapters, at least 1")
    alpha: Positive = Field(
        default=16.0, description="scale of the adapters, more than 0: their product is multiplied by alpha / rank"
    )
    dropout: Fraction = Field(default=0.0, description="dropout of the adapters' input, in [0, 1)")
    targets: tuple[str, ...] = Field(
        default=(),
        description="linear maps that get an adapter, by the ends of their names in the encoder, as query,value or "
        "output.dense; none: all linear maps of the trained layers",
    )


class TrainedLanguage(Section):
    """The parts of the language stream that a stage trains. Other parts are frozen and run in eval mode."""

    language_layers: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        default=8,
        description="number of last layers of the language stream to train, or `all` for every layer and the word "
        "embeddings",
    )
    query_key: bool = Field(default=False, description="train the query and key projections of those layers too")
    lora: Annotated[Lora | None, ADDED] = Field(
        default=None,
        description="train adapters of those layers in place of their weights and of the word embeddings: of the maps "
        "in `targets`, whatever `query_key` says; null: none",
    )

    @model_validator(mode="after")
    def _has_layers_to_adapt(self) -> Self:
        if self.lora and self.language_layers == 0:
            raise ValueError(
                "lora: expected layers of the language stream that are trained, got language_layers 0: raise it, or "
                "set lora null"
            )
        return self


class Trained(TrainedVisual, TrainedLanguage):
    """The parts of both streams that a stage trains. Other parts are frozen and run in eval mode."""


def _criterion(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[^\s:]+:(min|max)", text):
        metric, _, direction = text.partition(":")
        near = difflib.get_close_matches(direction, ("min", "max"), n=1)
        hint = f" (did you mean '{metric}:{near[0]}'?)" if metric and near else ""
        raise ValueError(f"expected METRIC:min or METRIC:max, as loss:min, got {text!r}{hint}")
    return text


class Stage(Section):
    """Settings that all stages have."""

    train: str = Field(description="folder or URL of the training shards")
    val: str = Field(description="folder or URL of the validation shards")
    epochs: Count = Field(default=1, description="number of epochs, at least 1")
    batch_size: Count = Field(description="samples per global batch, over all workers; at least one per chunk")
    window: Count | None = Field(
        default=None, description="samples that are shuffled and read together, at least 1; null: data.window"
    )
    optimizer: Optimizer = Optimizer()
    precision: Precision = Field(
        default="float32",
        description="number format of the computation. tf32: float32, but a GPU rounds the factors of products and "
        "convolutions to 10 bits; on a CPU it is float32. bf16: autocast over float32 weights",
    )
    clip_norm: Positive | None = Field(
        default=None, description="maximum norm of the gradient, more than 0; null: no clipping"
    )
    new_head: bool = Field(
        default=False, description="initialize the stage's head, even if the `run.start_from` model has one"
    )
    best: Annotated[str | None, AfterValidator(_criterion), ADDED] = Field(
        default=None,
        description="the validation metric that chooses the weights with which the stage ends, and its direction, as "
        "loss:min or text_to_image/recall@10:max; null: the stage's own",
    )
    patience: Annotated[Count | None, ADDED] = Field(
        default=None,
        description="consecutive validations without a new best after which the stage ends early, at least 1; null: "
        "it never does",
    )
    validate_every_steps: Annotated[Count | None, ADDED] = Field(
        default=None,
        description="steps of an epoch between validations within it, at least 1 and at most the steps of an epoch, "
        "beside the one at its end; null: only that one",
    )

    @model_validator(mode="after")
    def _reaches_its_milestones(self) -> Self:
        if late := [epoch for epoch in self.optimizer.milestones if epoch >= self.epochs]:
            raise ValueError(
                f"optimizer.milestones: expected epochs before the end of the stage's {self.epochs}, got {late[0]:g}: "
                "give earlier milestones, or more epochs"
            )
        return self

    @model_validator(mode="after")
    def _has_layers_to_decay(self) -> Self:
        trains = self.trained
        if self.optimizer.layer_decay < 1 and not (isinstance(trains, TrainedLanguage) and trains.language_layers):
            raise ValueError(
                f"optimizer.layer_decay: expected a stage that trains layers of the language stream, got "
                f"{self.optimizer.layer_decay:g} and a frozen one: leave it out, or set trains.language_layers"
            )
        if self.optimizer.trunk_layer_decay < 1 and not self.trains_trunk:
            raise ValueError(
                f"optimizer.trunk_layer_decay: expected a stage that trains the trunk, got "
                f"{self.optimizer.trunk_layer_decay:g} and a frozen one: leave it out, or set trains.trunk"
            )
        return self

    @property
    def trained(self) -> TrainedVisual | TrainedLanguage | None:
        """The parts of the streams that the stage trains; None for none."""
        return getattr(self, "trains", None)

    @property
    def trains_trunk(self) -> bool:
        """True when the stage changes the trunk's weights."""
        trains = self.trained
        return isinstance(trains, TrainedVisual) and trains.trunk


ATTENTION_DROPOUT = "dropout of the spatial attention, in [0, 1)"
LANGUAGE_DROPOUT = (
    "hidden and attention dropout of the language stream's trained layers, in [0, 1); null: the rates of its own "
    "configuration"
)
CHANNEL_DROPOUT = "probability of dropping a whole channel of the trunk's features, in [0, 1); helps with few images"


class CentreCropped(Stage):
    """Settings of stages that crop images at the centre."""

    resize: Count | None = Field(
        default=None, description="shorter side in pixels to resize to before the centre crop; null: model.image_size"
    )
    val_resize: Count | None = Field(
        default=None,
        description="shorter side in pixels to resize to before the centre crop of validation; null: `resize`",
    )


class Visual(Stage):
    """Image classification. Trains the visual stream."""

    resize: Count | None = Field(
        default=None,
        description="shorter side in pixels to resize to before the centre crop of validation; null: model.image_size",
    )
    crop_area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(0.08, 1.0),
        description="minimum and maximum fraction of the image's area in a training crop, in (0, 1]",
    )
    flip: bool = Field(default=True, description="mirror half of the training crops")
    classes: Count | None = Field(
        default=None, description="number of classes that the shards must have; null: any number"
    )
    dropout: Fraction = Field(default=0.1, description=ATTENTION_DROPOUT)
    classifier_dropout: Fraction = Field(
        default=0.5, description="dropout of the classifier's hidden layers, if it has any, in [0, 1)"
    )
    trains: TrainedVisual = TrainedVisual(trunk=True)

    @field_validator("crop_area")
    @classmethod
    def _ascending(cls, area: tuple[float, float]) -> tuple[float, float]:
        if area[0] > area[1]:
            raise ValueError(f"expected minimum and maximum in this order, got {area[0]:g}, {area[1]:g}")
        return area


class MaskedLanguage(Stage):
    """Masked language modelling. Trains the language stream on text alone."""

    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15, description="fraction of tokens to mask, in (0, 1)"
    )
    max_tokens: int = Field(default=32, ge=3, description="maximum tokens per text, with special tokens, at least 3")
    language_dropout: Fraction | None = Field(default=None, description=LANGUAGE_DROPOUT)
    trains: TrainedLanguage = TrainedLanguage(language_layers="all", query_key=True)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: Any) -> Any:
        """Read `mask_fraction` under its former name, so that earlier runs resume and earlier models load."""
        if isinstance(tree, dict) and "mask_share" in tree:
            return {"mask_fraction" if key == "mask_share" else key: value for key, value in tree.items()}
        return tree


class Grounding(CentreCropped):
    """Grounding of captions in images: a contrastive loss over the global batch, of match maps or of pooled vectors."""

    alignment: Annotated[Literal["match_map", "pooled"], ADDED] = Field(
        default="match_map",
        description="what an image and a caption are compared by. match_map: every position and every token; pooled: "
        "one vector each, the mean over positions or counted tokens at length 1, as in CLIP and ALIGN",
    )
    loss: Annotated[Literal["nt_xent", "sigmoid"], ADDED] = Field(
        default="nt_xent",
        description="nt_xent: of all captions an image's own, and of all images a caption's own; sigmoid: whether an "
        "image and a caption match, for each pair, with a learned bias that begins at -10, as in SigLIP",
    )
    temperature: Positive = Field(
        default=0.1,
        description="divisor of similarities in the loss, more than 0; initial value of a learned one, at least 0.01",
    )
    learn_temperature: Annotated[bool | None, ADDED] = Field(
        default=None,
        description="learn the temperature, bounded below by 0.01 as in CLIP; null: with the sigmoid loss, not with "
        "nt_xent",
    )
    similarity: Literal["dot", "cosine"] = Field(
        default="dot",
        description="similarity of a position and a token in the match map; with alignment pooled cosine, also by "
        "default",
    )
    special_tokens: bool = Field(
        default=True, description="treat special tokens ([CLS] and [SEP]) as tokens of the caption"
    )
    max_tokens: int = Field(default=32, ge=3, description="maximum tokens per caption, with special tokens, at least 3")
    dropout: Fraction = Field(default=0.1, description=ATTENTION_DROPOUT)
    language_dropout: Fraction | None = Field(default=None, description=LANGUAGE_DROPOUT)
    channel_dropout: Fraction = Field(default=0.0, description=CHANNEL_DROPOUT)
    trains: Trained = Trained()

    @model_validator(mode="before")
    @classmethod
    def _cosine_of_pooled(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("alignment") == "pooled":
            return {"similarity": "cosine", **tree}
        return tree

    @model_validator(mode="after")
    def _has_an_objective(self) -> Self:
        if self.alignment == "pooled" and self.similarity != "cosine":
            raise ValueError(
                f"similarity: expected cosine with alignment pooled, whose vectors have length 1, got "
                f"{self.similarity}: set similarity cosine"
            )
        if self.learns_temperature and self.temperature < LEAST_LEARNED_TEMPERATURE:
            raise ValueError(
                f"temperature: expected at least {LEAST_LEARNED_TEMPERATURE}, the bound of a learned one, got "
                f"{self.temperature:g}: raise it, or set learn_temperature false"
            )
        return self

    @property
    def learns_temperature(self) -> bool:
        """True when the temperature is a parameter of the loss."""
        return self.loss == "sigmoid" if self.learn_temperature is None else self.learn_temperature


class RelationalWeights(Section):
    """Weights of the relational stage's losses."""

    predicate: NotNegative = Field(
        default=1.0, description="weight of Loss_rel, the predicate of a pair of objects, at least 0"
    )
    pair: NotNegative = Field(
        default=1.0, description="weight of Loss_obj, the pair of objects of a predicate, at least 0"
    )
    object: NotNegative = Field(default=1.0, description="weight of the object classification loss, at least 0")


class Relational(CentreCropped):
    """Relational grounding: scores every predicate for each pair of objects, located by their phrases."""

    temperature: Positive = Field(default=1.0, description="temperature of the predicate and pair losses, more than 0")
    weights: RelationalWeights = RelationalWeights()
    reduction: Literal["triplets", "images"] = Field(
        default="triplets",
        description="triplets: mean loss over triplets (and objects); images: sum over them divided by the number of "
        "images",
    )
    special_tokens: bool = Field(
        default=False, description="include special tokens ([CLS] and [SEP]) in the mean over a phrase"
    )
    max_tokens: int = Field(default=10, ge=3, description="maximum tokens per phrase, with special tokens, at least 3")
    predicates: Count | None = Field(
        default=None, description="number of predicates that the shards must have; null: any number"
    )
    classes: Count | None = Field(
        default=None, description="number of object classes that the shards must have; null: any number"
    )
    dropout: Fraction = Field(default=0.1, description=ATTENTION_DROPOUT)
    language_dropout: Fraction | None = Field(default=None, description=LANGUAGE_DROPOUT)
    channel_dropout: Fraction = Field(default=0.0, description=CHANNEL_DROPOUT)
    trains: Trained = Trained(language_layers=2)


class Retrieval(CentreCropped):
    """Heads for image search: frozen streams, one vector per image and caption, symmetric NT-Xent."""

    temperature: Positive = Field(default=0.1, description="temperature of NT-Xent, more than 0")
    dropout: Fraction = Field(
        default=0.5, description="dropout between the two layers of each head, in [0, 1); the paper's is 0.5"
    )
    special_tokens: bool = Field(
        default=True, description="include special tokens ([CLS] and [SEP]) in the mean over a caption"
    )
    max_tokens: int = Field(default=32, ge=3, description="maximum tokens per caption, with special tokens, at least 3")


class TensorBoard(Section):
    """Event files for TensorBoard."""

    folder: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL of the event files, with a folder for each run; null: `tensorboard` in the run's "
        "folder",
    )


class Wandb(Section):
    """Runs in Weights & Biases. The key is taken from WANDB_API_KEY or `wandb login`."""

    project: str | None = Field(default=None, min_length=1, description="project; null: `tracking.experiment`")
    entity: str | None = Field(default=None, min_length=1, description="user or team; null: that of the key")
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="online: send the run to the server; offline: write it to `wandb` in the run's folder, for `wandb "
        "sync`",
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"expected each name once, got {', '.join(names)}")
    return names


class Tracking(Section):
    """Tracking of runs in MLflow, TensorBoard and W&B."""

    enabled: bool = Field(default=True, description="track the run")
    to: Annotated[tuple[TrackerName, ...], AfterValidator(_distinct)] = Field(
        default=("mlflow",),
        min_length=1,
        description="trackers of the run, as mlflow,tensorboard; tensorboard and wandb need `pip install "
        "groundray[trackers]`",
    )
    uri: str | None = Field(
        default=None,
        description="MLflow's tracking server, without a password, which belongs in the environment "
        "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD); null: MLFLOW_TRACKING_URI, which may have one, or "
        "else sqlite:///mlflow.db",
    )
    experiment: str = Field(default="groundray", description="MLflow experiment of the run")
    system_metrics: bool = Field(
        default=True,
        description="log CPU, memory, disk, network and GPUs of the driver's machine to MLflow, every 10 seconds or "
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    )
    tensorboard: TensorBoard = TensorBoard()
    wandb: Wandb = Wandb()

    def uses(self, name: TrackerName) -> bool:
        """Return True if runs are tracked there."""
        return self.enabled and name in self.to


FIT_ON = ("rated", "words", "rows")  # names of `analysis.fit_on`; a file of such a name is `./rows`


class Analysis(Section):
    """Report on the language streams at the end of a run. `groundray analyse all` writes the same."""

    enabled: bool = Field(default=True, description="write the report, if `norms` is given")
    norms: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL of the norms: ratings, categories, features, phrases and word pairs; null: no "
        "analysis",
    )
    fit_on: str | None = Field(
        default=None,
        min_length=1,
        description="words on which principal axes are fitted: a file or URL, one per line or a column `word`; or of "
        "the categories `rated` (their words that have a concreteness rating), `words` (all, each once) or `rows` (a "
        "word as often as it stands there); null: rated. The choice changes the axes' correlation with concreteness",
    )


class Settings(BaseSettings):
    """All settings of a training run."""

    # pydantic's own messages would show the values of all settings
    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    run: Run = Run()
    stages: Annotated[tuple[StageName, ...], AfterValidator(_distinct)] = Field(
        min_length=1, description="stages to run, in this order, as visual,grounding"
    )
    scaling: Scaling = Scaling()
    checkpoints: Checkpoints = Checkpoints()
    data: Data = Data()
    features: Features = Features()
    model: Model = Model()
    visual: Visual | None = None
    language: MaskedLanguage | None = None
    grounding: Grounding | None = None
    relational: Relational | None = None
    retrieval: Retrieval | None = None
    tracking: Tracking = Tracking()
    analysis: Analysis = Analysis()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no environment variables: settings come from a file and the command line alone."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, tree: Any) -> Any:
        """Refuse secrets before any other check: all settings are written and printed."""
        for name, text in _texts(tree):
            if problem := refusal(text):
                raise PydanticCustomError(SECRET, "{problem}", {"problem": f"{name}: {problem}"})
        return tree

    @staticmethod
    def stored(tree: dict[str, Any]) -> Settings:
        """Return settings that were read from a file of a run, also of an earlier version, which accepted secrets in
        URLs: they are removed."""
        return Settings(**_cleaned(tree))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for workers in (self.scaling.min_workers, self.scaling.max_workers):
            if workers and self.chunks % workers:
                counts = ", ".join(str(n) for n in range(1, self.chunks + 1) if self.chunks % n == 0)
                raise ValueError(
                    f"scaling.num_workers: {workers} workers cannot split {self.chunks} chunks evenly: "
                    f"use {counts} workers, or set scaling.chunks to a multiple of {workers}"
                )
        if self.data.jpeg_decoding == "gpu" and not self.scaling.use_gpu:
            raise ValueError(
                "data.jpeg_decoding: expected scaling.use_gpu true with gpu, got false: train on GPUs, or set "
                "data.jpeg_decoding cpu"
            )
        for name in self.stages:
            stage = getattr(self, name)
            if stage is None:
                raise ValueError(f"stages names {name!r}: expected a section {name!r} with at least train and val")
            if stage.optimizer.ema and self.run.on_nan == "skip":
                raise ValueError(
                    f"{name}.optimizer.ema: expected run.on_nan stop with it, got skip: a skipped step would count the "
                    "weights before it twice in the average. Set run.on_nan stop, or ema null"
                )
            if stage.batch_size < self.chunks:
                raise ValueError(
                    f"{name}.batch_size: expected at least a sample for each of {self.chunks} chunks (scaling.chunks), "
                    f"got {stage.batch_size}: use a larger batch, or fewer chunks"
                )
        return self

    @property
    def chunks(self) -> int:
        """Parts of a global batch, fixed for the run. Each is encoded at once, with dropout of its own."""
        return self.scaling.chunks or max(1, self.scaling.max_workers)

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Possible numbers of workers, ascending: those in range that divide the chunks evenly."""
        counts = range(self.scaling.min_workers, self.scaling.max_workers + 1)
        return tuple(count for count in counts if not count or self.chunks % count == 0)

    def stage(self, name: str) -> Any:
        """Return the section of a stage."""
        return getattr(self, name)

    def window(self, name: str) -> int | None:
        """Return the window of a stage; None if it follows from the stage's data."""
        return self.stage(name).window or self.data.window

    def with_windows(self, windows: Mapping[str, int]) -> Settings:
        """Return the settings with the windows of some stages."""
        sections = {name: self.stage(name).model_copy(update={"window": size}) for name, size in windows.items()}
        return self.model_copy(update=sections)

    def absolute(self) -> Settings:
        """Return the same settings with absolute local paths, for workers that start in another folder."""
        tree = self.model_dump()
        tree["run"]["storage"] = _absolute(self.run.storage)
        if self.run.start_from:
            tree["run"]["start_from"] = _absolute(self.run.start_from)
        if self.run.start_files:
            tree["run"]["start_files"] = _absolute(self.run.start_files)
        if self.run.continue_from:
            tree["run"]["continue_from"] = _absolute(self.run.continue_from)
        if self.features.folder:
            tree["features"]["folder"] = _absolute(self.features.folder)
        if self.tracking.tensorboard.folder:
            tree["tracking"]["tensorboard"]["folder"] = _absolute(self.tracking.tensorboard.folder)
        for key in ("norms", "fit_on"):
            if tree["analysis"][key] and tree["analysis"][key] not in FIT_ON:
                tree["analysis"][key] = _absolute(tree["analysis"][key])
        for name in self.stages:
            tree[name]["train"], tree[name]["val"] = _absolute(tree[name]["train"]), _absolute(tree[name]["val"])
        for section, keys in (("language", ("name", "weights", "tokenizer")), ("trunk", ("weights",))):
            for key in keys:
                value = tree["model"][section][key]
                if value is not None and Path(value).exists():
                    tree["model"][section][key] = _absolute(value)
        return Settings(**tree)

    def to_yaml(self) -> str:
        """Return the resolved settings as YAML. Loading it gives the same settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def identity(self) -> dict[str, Any]:
        """Return the settings that results depend on, by dotted name. A run resumes only if they are unchanged.

        Storage, workers, checkpoint intervals, tracking and analysis may change when a run resumes.
        """
        unused = {name for name in get_args(StageName) if name not in self.stages}
        flat = dict(flatten(self.model_dump(mode="json", exclude=unused)))
        changeable = (
            *("run.name", "run.storage", "run.on_nan", "run.log_samples", "run.profile", "run.programs"),
            *("run.start_alias", "run.start_files"),
            *(
                "tracking.",
                "scaling.",
                "checkpoints.",
                "data.prefetch",
                "data.processes",
                "data.jpeg_decoding",
                "features.folder",
                "features.max_gb",
                "analysis.",
            ),
        )
        added = set(_added_at_default(self))
        kept = {key: value for key, value in flat.items() if not key.startswith(changeable) and key not in added}
        identity = {key: in_preset(value) for key, value in kept.items()}
        del identity["data.window"]  # what counts is each stage's
        identity |= {f"{name}.window": self.window(name) for name in self.stages}
        compiled = {"scaling.compile": True} if self.scaling.compile else {}  # rounds otherwise
        decoded = {"data.jpeg_decoding": "gpu"} if self.data.jpeg_decoding == "gpu" else {}  # other pixels
        return identity | {"scaling.chunks": self.chunks} | compiled | decoded


def _added_at_default(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of settings that earlier versions lack (`ADDED`) and that have their default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if ADDED in field.metadata and value == field.default:
            yield prefix + name
        elif isinstance(value, BaseModel):
            yield from _added_at_default(value, f"{prefix}{name}.")


def _texts(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a tree of settings, of any form, with its dotted name."""
    if isinstance(tree, str):
        yield name, tree
    elif isinstance(tree, BaseModel):
        yield from _texts(dict(tree), name)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, name)


def _cleaned(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _cleaned(value) for key, value in tree.items()}
    return without_secrets(tree) if isinstance(tree, str) else tree


def is_model_uri(place: str) -> bool:
    """Return True if a place is MLflow's name of a model, as `models:/NAME@ALIAS` and `runs:/RUN_ID/model`."""
    return place.startswith(MODEL_URIS)


def _absolute(path: str) -> str:
    return path if "://" in path or is_model_uri(path) else str(expanded(path).absolute())


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings as (dotted name, value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
