"""The settings of a run: typed, frozen, read from a preset or a YAML file with `--dotted.field VALUE` on top.

Every impossible setting fails here, before a cluster is asked for anything.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

StageName = Literal["visual", "language", "grounding", "relational", "retrieval"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the place, what was expected, and what to write instead."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(Section):
    """Which run this is. The same storage and name resume it."""

    name: str = Field(default="run", pattern=r"^[\w][\w.\-]*$", description="name of the run, a folder in the storage")
    storage: str = Field(default="runs", min_length=1, description="path or URL that holds the runs")
    seed: int = Field(default=0, ge=0, description="everything random follows from it")
    start_from: str | None = Field(
        default=None,
        description="model/ folder (or its URL) of another run, whose streams and heads are where this one begins",
    )
    start_stage: StageName | None = Field(default=None, description="the stage of that model (default: its last)")
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a loss or gradient that is not finite does: end the run, or leave out its step",
    )
    log_samples: bool = Field(default=False, description="keep the ids of the samples of each step, in history/")


def _workers(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the least and the most; as the command line has it, a list of one or two."""
    numbers = value if isinstance(value, list | tuple) else [value]
    try:
        counts = tuple(int(str(number)) for number in numbers)
    except ValueError:
        counts = ()
    if len(counts) == 1 and counts[0] >= 0:
        return counts[0]
    if len(counts) == 2 and 1 <= counts[0] <= counts[1]:
        return counts[0], counts[1]
    raise ValueError(f"expected a number of workers, or [LEAST, MOST], got {value!r}")


class Scaling(Section):
    """Who does the work. Only `chunks` changes a result; the rest may differ from one resume to the next."""

    num_workers: Annotated[int | tuple[int, int], BeforeValidator(_workers)] = Field(
        default=1,
        description="training workers; 0: in this process, without Ray; [LEAST, MOST]: as many as there is room for",
    )
    chunks: int | None = Field(
        default=None,
        ge=1,
        description="parts of a global batch, each encoded at once (default: the largest number of workers)",
    )
    use_gpu: bool = Field(default=False, description="one GPU a worker")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a worker's arithmetic; fixed, float32 is the same on any number of workers "
        "(default: its machine's cores over the workers there)",
    )
    accumulate: bool = Field(
        default=False,
        description="keep the graph of one chunk at a time, for the memory of a chunk and a second forward pass",
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="CPUs that Ray sets aside for a training worker")
    max_failures: int = Field(
        default=3, ge=0, description="failures in a row, without a step further than before, that end a run"
    )
    wait_minutes: Positive = Field(default=60.0, description="for which a run waits for workers before it ends")
    hang_minutes: Positive = Field(
        default=10.0, description="without a sign of life after which a worker is ended, its stacks written to stacks/"
    )

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class Checkpoints(Section):
    """When a checkpoint is written, besides the end of each epoch."""

    every_minutes: Positive = Field(default=5.0, description="in the middle of an epoch, at the latest after so long")
    every_steps: Count | None = Field(default=None, description="in the middle of an epoch, after so many steps")


class Data(Section):
    """How samples are shuffled and read."""

    window: Count = Field(default=4096, description="samples of a global batch sequence that are shuffled together")
    prefetch: Count = Field(default=2, description="batches that wait ready for a worker")


class Features(Section):
    """The feature maps of a frozen trunk, kept as shards: made once, then read instead of images."""

    use: Literal["auto", "never"] = Field(
        default="auto", description="wherever it is exact (a frozen trunk, no random crop), to bfloat16's rounding"
    )
    folder: str | None = Field(
        default=None, min_length=1, description="path or URL (default: .features in run.storage, for all runs there)"
    )


class Trunk(Section):
    """The convolutional part of the visual stream."""

    name: Literal["vgg16", "efficientnet_lite0", "tiny"] = "vgg16"
    weights: str = Field(default="published", description="`published`, `none` (from scratch), or a weight file's path")


class Language(Section):
    """The language stream: a BERT."""

    name: str = Field(
        default="bert-base-uncased",
        description="`tiny`, `minilm` (extra `pretrained`), a hub's model name, or a folder or URL",
    )
    weights: str = Field(
        default="published", description="`published`, `none` (from scratch), or a model folder or URL"
    )
    tokenizer: str | None = Field(default=None, description="tokenizer folder, URL or name (default: the model's own)")
    layers: Count = Field(default=2, description="of `tiny`")
    width: Count = Field(default=128, description="of `tiny`")
    heads: Count = Field(default=4, description="of `tiny`")


class RelationalModule(Section):
    """What the relational stage adds to the streams."""

    attention_heads: Count = Field(default=8, description="of the cross-modal attention")
    space: Count = Field(default=32, description="width of the relation space")
    hidden: Count = Field(default=256, description="width of the object classifier")


class Model(Section):
    """The two streams, both as wide as the language stream, and the sizes of what the stages add to them."""

    image_size: Count = Field(default=224, description="pixels a side that the visual stream sees")
    trunk: Trunk = Trunk()
    language: Language = Language()
    attention_heads: Count = Field(default=12, description="of the spatial attention")
    attention_ffn: Count = Field(default=3072, description="width of the spatial attention's feed-forward part")
    classifier: int = Field(
        default=4096,
        ge=0,
        description="width of the visual stage's classifier; 0: a linear map of the maximum over all positions",
    )
    relational: RelationalModule = RelationalModule()


class Optimizer(Section):
    """Adam or SGD with momentum, and a learning rate that halves every so many epochs."""

    kind: Literal["adam", "sgd"] = "adam"
    lr: Positive = 5e-5
    language_lr: Positive | None = Field(
        default=None, description="of the language stream, where it is pretrained and the rest is new (default: lr)"
    )
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="of Adam")
    momentum: Fraction = Field(default=0.9, description="of SGD")
    weight_decay: float = Field(default=0.0, ge=0)
    halve_every: Count = Field(default=15, description="epochs after which the learning rate halves")
    warmup: int = Field(default=0, ge=0, description="steps over which the learning rate first rises to `lr`")


class TrainedVisual(Section):
    """Which parts of the visual stream a stage trains; the others are frozen and run in eval mode."""

    trunk: bool = False
    attention: bool = Field(default=True, description="the embedder and the spatial attention")


class TrainedLanguage(Section):
    """Which parts of the language stream a stage trains; the others are frozen and run in eval mode."""

    language_layers: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        default=8, description="the last so many layers of the language stream; `all` with its word embeddings"
    )
    query_key: bool = Field(default=False, description="with the query and key projections of those layers")


class Trained(TrainedVisual, TrainedLanguage):
    """Which parts of both streams a stage trains; the others are frozen and run in eval mode."""


class Stage(Section):
    """What every stage has."""

    train: str = Field(description="folder or URL of the shards to train on")
    val: str = Field(description="folder or URL of the shards to validate on")
    epochs: Count = 1
    batch_size: Count = Field(description="samples of the global batch")
    optimizer: Optimizer = Optimizer()
    precision: Literal["float32", "bf16", "float64"] = Field(default="float32", description="bf16 is autocast")
    clip_norm: Positive | None = Field(default=None, description="largest norm of the gradient")
    new_head: bool = Field(default=False, description="begin with a fresh head where run.start_from has one")

    @property
    def trains_trunk(self) -> bool:
        """Whether the trunk's weights change."""
        trains = getattr(self, "trains", None)
        return isinstance(trains, TrainedVisual) and trains.trunk


class Visual(Stage):
    """Classification of images, which teaches the visual stream."""

    resize: Count | None = Field(
        default=None, description="short side before the centre crop of validation (default: image_size)"
    )
    crop_area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        default=(0.08, 1.0), description="least and largest share of the image that a training crop takes"
    )
    flip: bool = Field(default=True, description="half of the training crops are mirrored")
    classes: Count | None = Field(default=None, description="how many there must be (default: what the shards have)")
    dropout: Fraction = Field(default=0.1, description="of the spatial attention")
    classifier_dropout: Fraction = Field(
        default=0.5, description="of the classifier's two hidden layers, where it has them"
    )
    trains: TrainedVisual = TrainedVisual(trunk=True)

    @field_validator("crop_area")
    @classmethod
    def _ascending(cls, area: tuple[float, float]) -> tuple[float, float]:
        if area[0] > area[1]:
            raise ValueError(f"expected the least share before the largest, got {area[0]:g}, {area[1]:g}")
        return area


class MaskedLanguage(Stage):
    """Masked language modelling, which teaches the language stream from text alone."""

    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.15, description="of the word pieces")
    max_tokens: int = Field(default=32, ge=3, description="word pieces of a text, [CLS] and [SEP] included")
    trains: TrainedLanguage = TrainedLanguage(language_layers="all", query_key=True)


class Grounding(Stage):
    """Grounding of captions in images: match map and two-way NT-Xent over the global batch."""

    temperature: Positive = 0.1
    similarity: Literal["dot", "cosine"] = Field(
        default="dot", description="of a position and a token in the match map"
    )
    special_tokens: bool = Field(default=True, description="[CLS] and [SEP] count as tokens of the caption")
    max_tokens: int = Field(default=32, ge=3, description="word pieces of a caption, [CLS] and [SEP] included")
    resize: Count | None = Field(default=None, description="short side before the centre crop (default: image_size)")
    dropout: Fraction = Field(default=0.1, description="of the spatial attention")
    channel_dropout: Fraction = Field(default=0.0, description="of the trunk's channels, each whole; for few images")
    trains: Trained = Trained()


class RelationalWeights(Section):
    """How much each loss of the relational stage counts."""

    predicate: NotNegative = Field(default=1.0, description="of Loss_rel: which predicate a pair of objects has")
    pair: NotNegative = Field(default=1.0, description="of Loss_obj: which pair of objects a predicate has")
    object: NotNegative = Field(default=1.0, description="of the object's class")


class Relational(Stage):
    """Relational grounding: pairs of objects, each seen by its phrase, are scored for every predicate."""

    temperature: Positive = 1.0
    weights: RelationalWeights = RelationalWeights()
    reduction: Literal["triplets", "images"] = Field(
        default="triplets",
        description="the loss is the mean over triplets (and over objects), or their sum over the number of images",
    )
    special_tokens: bool = Field(default=False, description="[CLS] and [SEP] count in the mean over a phrase")
    max_tokens: int = Field(default=10, ge=3, description="word pieces of a phrase, [CLS] and [SEP] included")
    resize: Count | None = Field(default=None, description="short side before the centre crop (default: image_size)")
    predicates: Count | None = Field(default=None, description="how many there must be (default: as in the shards)")
    classes: Count | None = Field(default=None, description="how many there must be (default: as in the shards)")
    dropout: Fraction = Field(default=0.1, description="of the spatial attention")
    channel_dropout: Fraction = Field(default=0.0, description="of the trunk's channels, each whole; for few images")
    trains: Trained = Trained(language_layers=2)


class Retrieval(Stage):
    """Heads for image search on frozen streams: two-way NT-Xent of one vector an image and one a caption."""

    temperature: Positive = 0.1
    dropout: Fraction = Field(default=0.5, description="between the two layers of each head (paper)")
    special_tokens: bool = Field(default=True, description="[CLS] and [SEP] count in the mean over a caption")
    max_tokens: int = Field(default=32, ge=3, description="word pieces of a caption, [CLS] and [SEP] included")
    resize: Count | None = Field(default=None, description="short side before the centre crop (default: image_size)")


class Tracking(Section):
    """MLflow. `MLFLOW_TRACKING_URI`, where it is set, is the default server."""

    enabled: bool = True
    uri: str | None = Field(default=None, description="tracking server (default: sqlite:///mlflow.db)")
    experiment: str = "groundray"


class Analysis(Section):
    """What is made of a run's language streams when it has ended: a report, see `python -m groundray.analyse all`."""

    enabled: bool = True
    norms: str | None = Field(
        default=None,
        min_length=1,
        description="folder or URL of ratings, categories, features, phrases and word pairs (default: no analysis)",
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"expected each stage once, got {', '.join(names)}")
    return names


class Settings(BaseSettings):
    """All settings of a training run."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", cli_prog_name="python -m groundray.train", cli_implicit_flags=False
    )

    run: Run = Run()
    stages: Annotated[tuple[StageName, ...], AfterValidator(_distinct)] = Field(
        min_length=1, description="the stages to run, in this order"
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
        """Only what `load` is given: the command line over the file. No environment variables."""
        return (init_settings,)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for workers in (self.scaling.min_workers, self.scaling.max_workers):
            if workers and self.chunks % workers:
                counts = ", ".join(str(n) for n in range(1, self.chunks + 1) if self.chunks % n == 0)
                raise ValueError(
                    f"scaling.num_workers: {workers} workers cannot share {self.chunks} chunks evenly: "
                    f"use {counts} workers, or set scaling.chunks to a multiple of {workers}"
                )
        for name in self.stages:
            stage = getattr(self, name)
            if stage is None:
                raise ValueError(f"stages names {name!r}: expected a section {name!r} with at least train and val")
            if stage.batch_size % self.chunks:
                raise ValueError(
                    f"{name}.batch_size: {stage.batch_size} samples cannot be cut into {self.chunks} equal chunks "
                    f"(scaling.chunks): use a multiple of {self.chunks}"
                )
        return self

    @property
    def chunks(self) -> int:
        """Parts of a global batch, fixed for the run: the unit in which a batch is encoded and dropout is drawn."""
        return self.scaling.chunks or max(1, self.scaling.max_workers)

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that the run may have, ascending: those in range that share the chunks evenly."""
        counts = range(self.scaling.min_workers, self.scaling.max_workers + 1)
        return tuple(count for count in counts if not count or self.chunks % count == 0)

    def stage(self, name: str) -> Any:
        """The section of a stage that `stages` names."""
        return getattr(self, name)

    def absolute(self) -> Settings:
        """The same settings with every path of this machine absolute, for workers that start elsewhere."""
        tree = self.model_dump()
        tree["run"]["storage"] = _absolute(self.run.storage)
        if self.run.start_from:
            tree["run"]["start_from"] = _absolute(self.run.start_from)
        if self.features.folder:
            tree["features"]["folder"] = _absolute(self.features.folder)
        if self.analysis.norms:
            tree["analysis"]["norms"] = _absolute(self.analysis.norms)
        for name in self.stages:
            tree[name]["train"], tree[name]["val"] = _absolute(tree[name]["train"]), _absolute(tree[name]["val"])
        for section, keys in (("language", ("name", "weights", "tokenizer")), ("trunk", ("weights",))):
            for key in keys:
                value = tree["model"][section][key]
                if value is not None and Path(value).exists():
                    tree["model"][section][key] = _absolute(value)
        return Settings(**tree)

    def to_yaml(self) -> str:
        """The resolved settings; a file of them gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: every dotted setting that a result depends on.

        Where the run is kept, who works on it, where it is tracked and what is made of it in the end may change between
        an attempt and the next.
        """
        unused = {name for name in get_args(StageName) if name not in self.stages}
        flat = dict(flatten(self.model_dump(mode="json", exclude=unused)))
        free = (
            *("run.name", "run.storage", "run.on_nan", "run.log_samples"),
            *("tracking.", "scaling.", "checkpoints.", "data.prefetch", "features.folder", "analysis."),
        )
        kept = {key: value for key, value in flat.items() if not key.startswith(free)}
        return kept | {"scaling.chunks": self.chunks}


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings as (dotted name, value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
