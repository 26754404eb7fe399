"""Feature maps of images: of a trunk, or of a trained visual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32
from torch import Tensor

from groundray import arithmetic, config
from groundray.data.image_decoder import UnusableImage
from groundray.data.image_inputs import CentreCrop
from groundray.model import export
from groundray.model.timm_trunk import TIMM
from groundray.model.trunk import TRUNKS, build_trunk
from groundray.model.weights import digest

UNPUBLISHED = ("tiny",)  # trunks without published weights
# settings of a run that errors name, and the options that stand for them here
OPTIONS = {"model.trunk.name": "--trunk", "model.trunk.weights": "--weights", "model.image_size": "--image-size"}


@dataclass(frozen=True)
class ImageEncoder:
    """A network from images to local features.

    Attributes:
        about: what it is, for a card.
        digest: SHA-256 of its weights.
        crop: the part of an image that it sees.
        network: takes pixels, and returns features by position.
        device: where it computes.
    """

    about: str
    digest: str
    crop: CentreCrop
    network: Callable[[Tensor], Tensor]
    device: str = "cpu"

    @staticmethod
    def of_trunk(name: str, weights: str | None, image_size: int, seed: int, device: str = "cpu") -> ImageEncoder:
        """Return a trunk: its feature map, a vector a position.

        Args:
            name: as of `build_trunk`.
            weights: as of `build_trunk`; None for the published ones, if the trunk has any.
            image_size: short side of an image, in pixels, whose centre the trunk sees.
            seed: of random weights.

        Raises:
            ValueError: there is no such trunk, it does not take images of this size, or its weights cannot be loaded.
        """
        if name not in TRUNKS and not name.startswith(TIMM):
            raise ValueError(f"--trunk: expected one of {', '.join(TRUNKS)}, or {TIMM}NAME, got {name!r}")
        if image_size < 1:
            raise ValueError(f"--image-size: expected at least 1, got {image_size}")
        weights = weights or ("none" if name in UNPUBLISHED else "published")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                trunk = build_trunk(name, weights, image_size).eval().to(device)
            except ValueError as error:
                text = str(error)
                for setting, option in OPTIONS.items():
                    text = text.replace(setting, option)
                raise ValueError(text) from None
        described = {"none": f"random weights of seed {seed}", "published": "published weights"}.get(weights, weights)
        return ImageEncoder(
            f"the feature map of trunk {name}, {described}, of images of {image_size} pixels",
            digest(trunk),
            CentreCrop(image_size, image_size),
            lambda pixels: trunk(pixels).flatten(2).transpose(1, 2),
            device,
        )

    @staticmethod
    def of_checkpoint(checkpoint: str, device: str = "cpu") -> ImageEncoder:
        """Return the visual stream of the last stage of an exported model that trained with images.

        Raises:
            FileNotFoundError, ValueError: there is no exported model, or it was trained without images.
        """
        about = export.about(checkpoint)
        stages = [stage.name for stage in about.stages if stage.name != "language"]
        if not stages:
            raise ValueError(
                f"--checkpoint: expected a model that was trained with images, got one of stage language alone at "
                f"{checkpoint}: give another, or --trunk"
            )
        name = stages[-1]
        visual = export.load(checkpoint, name).model.visual.to(device)
        settings = config.Settings.stored(about.settings)
        size, stage = settings.model.image_size, settings.stage(name)
        resize = getattr(stage, "val_resize", None) or stage.resize or size  # as in validation
        return ImageEncoder(
            f"the visual stream of {settings.run.name} after stage {name}",
            digest(visual),
            CentreCrop(resize, size),
            visual,
            device,
        )

    @torch.inference_mode()
    def features(self, images: pa.Table, folder: str) -> Float32[np.ndarray, "image position dim"]:
        """Return the features of images.

        Args:
            images: their `id` and encoded `image`.
            folder: of the images, for messages.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        with arithmetic.using("float32", self.device):
            pixels = torch.from_numpy(self._pixels(images, folder)).to(self.device)
            return self.network(pixels).float().cpu().numpy()

    def _pixels(self, images: pa.Table, folder: str) -> np.ndarray:
        try:
            return self.crop.arrays(images)
        except UnusableImage:
            for row in range(len(images)):
                try:
                    self.crop.arrays(images.slice(row, 1))
                except UnusableImage as problem:
                    id = images["id"][row].as_py()
                    raise problem.of(
                        f"{folder}: image {id!r} cannot be decoded (run `python -m groundray.prepare` again with "
                        "--overwrite to leave it out)"
                    ) from None
            raise
