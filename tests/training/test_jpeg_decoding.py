"""`data.jpeg_decoding`: what it needs, and what it changes of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALM, SmallWorld
from pretend_gpu import PretendGpu
from torch import Tensor

from groundray import config
from groundray.data import device_decoding
from groundray.data.derived import finalize, make_parts, tasks
from groundray.data.image_inputs import CentreCrop, EncodedCrops
from groundray.data.row_groups import read_rows
from groundray.training import jpeg_decoding, preflight, progression
from groundray.training.events import Event, StepDone
from groundray.training.jpeg_decoding import check_decoder, with_encoded_crops
from groundray.training.trunk_features import features_of
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs with every decoder

GPU = ("--scaling.use_gpu=true", "--data.jpeg_decoding=gpu")


def test_it_needs_gpus(world: SmallWorld) -> None:
    with pytest.raises(config.SettingsError, match=r"data\.jpeg_decoding: expected scaling\.use_gpu true"):
        config.load("demo", world.settings("--data.jpeg_decoding=gpu"))


def raising(error: Exception) -> SimpleNamespace:
    def decode_jpegs_cuda(*_: Any) -> None:
        raise error

    return SimpleNamespace(decode_jpegs_cuda=decode_jpegs_cuda)


@pytest.mark.parametrize(
    ("ops", "got"),
    [
        (
            raising(RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")),
            "a build without it",
        ),
        (SimpleNamespace(), "none"),
    ],
)
def test_it_needs_nvjpeg_before_anything_starts(
    ops: SimpleNamespace, got: str, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops, "image", ops)
    words = [*world.settings(f"--run.storage={tmp_path}"), "--scaling.use_gpu=true"]
    preflight.check(config.load("demo", words))
    with pytest.raises(
        config.SettingsError, match=rf"data\.jpeg_decoding: expected a torchvision with nvJPEG, got {got}"
    ):
        preflight.check(config.load("demo", [*words, "--data.jpeg_decoding=gpu"]))


def test_with_nvjpeg_the_check_needs_no_gpu(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "image", raising(RuntimeError("Expected the device parameter to be a cuda device")))
    check_decoder(config.load("demo", world.settings(*GPU)))


def test_only_runs_that_use_it_have_another_identity(world: SmallWorld) -> None:
    plain, gpu = (
        config.load("demo", world.settings(GPU[0], f"--data.jpeg_decoding={kind}")) for kind in ("cpu", "gpu")
    )
    (line,) = config.differences(plain.identity(), gpu.identity())
    assert line == "  data.jpeg_decoding: None stored, 'gpu' now"


def test_only_stages_that_read_pixels_leave_jpegs_to_the_gpu(world: SmallWorld) -> None:
    settings = config.load("demo", world.settings(*GPU, stages="visual,language,grounding"))
    check = preflight.STAGES
    tokenizer = preflight.load_tokenizer(settings.model.language)
    for name in settings.stages:
        stage = check[name](settings, tokenizer)
        found = with_encoded_crops(stage, settings, "cpu")
        if name == "language":
            assert found is stage
            continue
        for split in ("train", "val"):
            crops = getattr(found, split).samples.image_inputs
            assert crops == EncodedCrops(getattr(stage, split).samples.image_inputs)
            assert with_encoded_crops(found, settings, "cpu") is found


@pytest.mark.parametrize("fault", ["error", "colours", "size"])
def test_a_decoder_that_does_not_work_ends_the_run(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg_decoding._try_decoder("cpu")
    decode_jpegs = device_decoding.decode_jpegs

    def faulty(jpegs: list[Tensor], device: str) -> list[Tensor]:
        if fault == "error":
            raise RuntimeError("no driver\n and more")
        images = decode_jpegs(jpegs, device)
        return [image.flip(0) if fault == "colours" else image[:, 1:] for image in images]

    monkeypatch.setattr(device_decoding, "decode_jpegs", faulty)
    with pytest.raises(config.SettingsError, match=r"data\.jpeg_decoding: nvJPEG .*set data\.jpeg_decoding cpu"):
        jpeg_decoding._try_decoder("cpu")


def losses(world: SmallWorld, storage: Path, device: str, *words: str) -> list[float]:
    settings = config.load("demo", world.settings(*CALM, f"--run.storage={storage}", "--features.use=never", *words))
    events: list[Event] = []
    progression.run_stages(preflight.check(settings), InProcess(events.append, device))
    return [event.metrics["loss"] for event in events if isinstance(event, StepDone)]


def test_a_run_trains_on_the_same_pictures(world: SmallWorld, tmp_path: Path) -> None:
    """A pretend GPU's first losses are those of a run whose pictures the CPU decodes, but for rounded pixels."""
    expected = losses(world, tmp_path / "cpu", "cpu")
    with PretendGpu() as gpu:
        found = losses(world, tmp_path / "gpu", "cuda", *GPU)
    assert any("device_decoding" in line for line in gpu.waits)
    assert found[:3] == pytest.approx(expected[:3], rel=0.02)


def test_trunk_features_of_gpu_decoded_pictures_are_others(world: SmallWorld, tmp_path: Path) -> None:
    maps, keys = [], []
    for kind in ("cpu", "gpu"):
        words = world.settings(
            "--grounding.trains.trunk=false", f"--run.storage={tmp_path}", GPU[0], f"--data.jpeg_decoding={kind}"
        )
        settings = config.load("demo", words)
        (stage,) = (
            preflight.STAGES[name](settings, preflight.load_tokenizer(settings.model.language))
            for name in settings.stages
        )
        model, _ = progression.initial_model(settings)
        features = features_of(stage, settings, model.visual.trunk)["train"]
        assert isinstance(features.crop, EncodedCrops if kind == "gpu" else CentreCrop)
        encoder = features.encoder(model.visual.trunk, "cpu")
        for group, names in tasks(features.spec, workers=1):
            make_parts(features.spec, group, names, encoder)
        dataset = finalize(features.spec)
        rows = read_rows(dataset, np.arange(72), ["image"])["image"]
        bits = np.stack([np.frombuffer(row.as_buffer(), np.uint16) for row in rows])
        maps.append(torch.from_numpy(bits).view(torch.bfloat16).float())
        keys.append(features.spec.key)
    assert keys[0] != keys[1]
    torch.testing.assert_close(maps[0], maps[1], rtol=0.1, atol=0.1)
    assert not torch.equal(maps[0], torch.zeros_like(maps[0]))
