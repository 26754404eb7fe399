"""Crops of JPEGs that a device decodes: those of the CPU's decoder, within rounding, in any batch."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jpegs
import numpy as np
import pytest
import torch
from conftest import SmallWorld
from PIL import Image
from pretend_gpu import PretendGpu
from torch import Tensor

from groundray import config
from groundray.data import decoding_processes, device_decoding, image_decoder, image_inputs, transforms
from groundray.data.batches import ImageBatch
from groundray.data.decoding_processes import DecodingProcesses
from groundray.data.device_copies import on_device
from groundray.data.device_decoding import pixels_of, with_pixels
from groundray.data.image_decoder import UnusableImage, plain_jpeg
from groundray.data.image_inputs import CentreCrop, EncodedCrops, RandomCrop
from groundray.data.plan import Cursor
from groundray.data.stream import Source, stream
from groundray.model.pretrained import load_tokenizer
from groundray.runtime.data import ray_stream
from groundray.runtime.train.resources import DataCpuBudget
from groundray.stage.stages import STAGES

CROPS = [
    CentreCrop(57, 56),
    CentreCrop(56, 48),
    RandomCrop(56, (0.9, 1.0), flip=True, seed=0),
    RandomCrop(40, (0.5, 1.0), flip=True, seed=1),
]
# libjpeg's builds in Pillow and torchvision differ by 1, resampling by 1; a reduced JPEG is a mean, not libjpeg's
TOLERANCE, REDUCED = 2, 6


def packed(crops: CentreCrop | RandomCrop, files: dict[str, bytes], epoch: int = 0) -> ImageBatch:
    return ImageBatch.of_images(list(files), EncodedCrops(crops).arrays(crops.draw(jpegs.table(files), epoch)))


def decoded(crops: CentreCrop | RandomCrop, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    (images,) = pixels_of([packed(crops, files)], "cpu")
    return dict(zip(files, images.numpy(), strict=True))


@pytest.mark.parametrize("name", jpegs.plain())
def test_baseline_jpegs_are_left_to_the_device(name: str) -> None:
    assert plain_jpeg(jpegs.plain()[name], 56) is not None


@pytest.mark.parametrize("name", jpegs.others())
def test_other_pictures_are_not(name: str) -> None:
    assert plain_jpeg(jpegs.others()[name], 56) is None


def test_a_jpeg_with_colours_of_its_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    profiled = jpegs.encoded(jpegs.smooth(64, 64), icc_profile=b"a profile")
    assert plain_jpeg(profiled, 56) is not None  # damaged: `decode` takes it for sRGB
    monkeypatch.setattr(image_decoder, "_transform", lambda profile, mode: object())
    assert plain_jpeg(profiled, 56) is None


@pytest.mark.parametrize("crops", CROPS, ids=str)
def test_crops_are_those_of_the_cpu(crops: CentreCrop | RandomCrop) -> None:
    files = {**jpegs.plain(), **jpegs.others()}
    found = decoded(crops, files)
    expected = crops.arrays(crops.draw(jpegs.table(files), 0))
    for (name, ours), twin in zip(found.items(), expected, strict=True):
        difference = np.abs(ours.astype(int) - twin)
        if name in jpegs.others():
            assert not difference.any(), name
        else:
            assert difference.max() <= (REDUCED if "reduced" in name else TOLERANCE), name
            assert difference.mean() < 1, name


def test_half_of_the_crops_are_mirrored_as_on_the_cpu() -> None:
    crops = RandomCrop(56, (0.9, 1.0), flip=True, seed=0)
    files = {str(number): jpegs.plain()["4:4:4"] for number in range(20)}
    expected = crops.arrays(crops.draw(jpegs.table(files), 0))
    mirrored = 0
    for ours, twin in zip(decoded(crops, files).values(), expected, strict=True):
        assert np.abs(ours.astype(int) - twin).max() <= TOLERANCE
        mirrored += (
            np.abs(ours[:, :, ::-1].astype(int) - twin).mean() < np.abs(ours.astype(int) - twin[..., ::-1]).mean()
        )
    keys = crops.draw(jpegs.table(files), 0)["crop"].to_pylist()
    assert 4 <= sum(transforms.random_box(97, 61, (0.9, 1.0), True, key)[1] for key in keys) <= 16


def test_a_crop_of_the_decoded_size_has_the_decoders_bits() -> None:
    file = jpegs.plain()["4:2:0"]  # 120 x 80
    (stored,) = device_decoding.decode_jpegs([torch.frombuffer(bytearray(file), dtype=torch.uint8)], "cpu")
    assert np.array_equal(decoded(CentreCrop(80, 64), {"a": file})["a"], stored[:, 8:72, 28:92])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    """The bits are those of the upright picture, as Pillow turns what was decoded."""
    file = jpegs.encoded(jpegs.smooth(48, 32), orientation=orientation)
    (stored,) = device_decoding.decode_jpegs([torch.frombuffer(bytearray(file), dtype=torch.uint8)], "cpu")
    image = Image.fromarray(stored.permute(1, 2, 0).numpy())
    if orientation > 1:
        image = image.transpose(image_decoder.UPRIGHT[orientation])
    twin = transforms._scaled(image, transforms.centre_box(*image.size, 32, 32), 32)
    assert np.array_equal(decoded(CentreCrop(32, 32), {"a": file})["a"], twin)


@pytest.mark.parametrize("side", [30, 56, 130])
@pytest.mark.parametrize("size", [(120, 90), (90, 120)])
def test_resampling_is_that_of_pillow(size: tuple[int, int], side: int) -> None:
    """The image is noise: a box that is off by a hundredth of a pixel changes the result."""
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8))
    image = torch.from_numpy(np.array(noise)).permute(2, 0, 1)
    for key in range(20):
        box, _ = transforms.random_box(*size, (0.05, 1.0), False, key)
        low, high = (np.array(box[end : end + 2], np.float32)[:, None] for end in (0, 2))
        taps, weights = map(
            torch.from_numpy, device_decoding._weights(low, high, np.array(size)[:, None], [False] * 2, side)
        )
        narrow = device_decoding._resampled(image, taps[0], weights[0])
        ours = device_decoding._resampled(narrow.transpose(1, 2), taps[1], weights[1]).transpose(1, 2)
        difference = np.abs(ours.numpy().astype(int) - transforms._scaled(noise, box, side))
        assert difference.max() <= 1
        if size[0] > size[1]:  # else Pillow may scale columns first
            assert not difference.any()


def test_pixels_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    files, crops = {**jpegs.plain(), **jpegs.others()}, CROPS[-1]
    together = decoded(crops, files)
    monkeypatch.setattr(device_decoding, "GROUP_PIXELS", 20_000)  # a few JPEGs each
    shuffled = dict(sorted(files.items(), key=lambda item: len(item[1])))
    for name, pixels in decoded(crops, shuffled).items():
        assert np.array_equal(pixels, together[name])
        assert np.array_equal(decoded(crops, {name: files[name]})[name], pixels)


def test_a_large_jpeg_is_decoded_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    file = {"a": jpegs.plain()["reduced 4"]}
    monkeypatch.setattr(image_inputs, "MAX_PIXELS", 283 * 233 - 1)
    assert np.array_equal(decoded(CROPS[0], file)["a"], CROPS[0].arrays(jpegs.table(file))[0])


@pytest.mark.parametrize("answer", ["an error", "another size"])
def test_what_the_device_refuses_the_cpu_decodes(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = jpegs.plain()
    refused = len(files["reduced, turned"])
    decode_jpegs = device_decoding.decode_jpegs

    def refusing(contents: list[Tensor], device: str) -> list[Tensor]:
        if answer == "an error" and any(len(content) == refused for content in contents):
            raise RuntimeError("nvJPEG: not supported")
        images = decode_jpegs(contents, device)
        return [
            image[:, 1:] if len(content) == refused else image for image, content in zip(images, contents, strict=True)
        ]

    expected = decoded(CROPS[0], files)
    (by_cpu,) = CROPS[0].arrays(jpegs.table({"a": files["reduced, turned"]}))
    monkeypatch.setattr(device_decoding, "decode_jpegs", refusing)
    for name, pixels in decoded(CROPS[0], files).items():
        if name == "reduced, turned":
            assert np.abs(pixels.astype(int) - by_cpu).max() <= 1  # resampling's
        else:
            assert np.array_equal(pixels, expected[name]), name


def test_a_device_without_memory_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(contents: list[Tensor], device: str) -> list[Tensor]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(device_decoding, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoded(CROPS[0], jpegs.plain())


def damaged() -> dict[str, bytes]:
    file = jpegs.plain()["4:2:0"]
    (length,) = struct.unpack_from(">H", file, 4)
    return {
        "truncated": file[: len(file) // 2],
        "without its end": file[:-2],
        "header alone": file[: 4 + length],
        "tables": jpegs.without_tables(file),
        "no picture": b"no picture",
        "empty": b"",
    }


@pytest.mark.parametrize("name", damaged())
def test_what_the_cpu_refuses_is_refused(name: str) -> None:
    file = {name: damaged()[name]}
    with pytest.raises(UnusableImage) as expected:
        CROPS[0].arrays(jpegs.table(file))
    with pytest.raises(UnusableImage) as found:
        decoded(CROPS[0], {**jpegs.plain(), **file})
    assert found.value.reason == expected.value.reason
    if name == "tables":  # found by the device's decoder, after the stream
        assert str(found.value).startswith("sample 'tables' cannot be decoded: ")


# streams


def sources(world: SmallWorld, stage: str, split: str = "train") -> tuple[Source, Source]:
    """Return a stage's source as it is, and with its JPEGs left to a device."""
    settings = config.load("demo", world.settings("--data.window=24", "--scaling.num_workers=3", "--scaling.chunks=3"))
    source: Source = getattr(STAGES[stage](settings, load_tokenizer(settings.model.language)), split)
    crops = source.samples.image_inputs  # pyright: ignore[reportAttributeAccessIssue]
    return source, source.with_image_inputs(EncodedCrops(crops))


def assert_same(found: Iterator[object], expected: Iterator[object]) -> None:
    for step, twin in zip(found, expected, strict=True):
        for (number, batch), (wanted, other) in zip(with_pixels(step, "cpu").chunks, twin.chunks, strict=True):  # type: ignore[attr-defined, arg-type]
            assert (number, batch.ids) == (wanted, other.ids)
            for name, tensor in batch.tensors.items():
                if name == "images":
                    assert tensor.shape == other.images.shape
                    difference = (tensor.int() - other.images.int()).abs()
                    assert int(difference.max() if len(batch) else 0) <= TOLERANCE
                else:
                    assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.thorough
@pytest.mark.parametrize("stage", ["visual", "grounding", "relational"])
def test_streams_have_the_same_samples(stage: str, world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, encoded = sources(world, stage)
    assert_same(stream(encoded, Cursor(), 2), stream(plain, Cursor(), 2))
    monkeypatch.setattr(decoding_processes, "BLOCK_ROWS", 3)
    processes = DecodingProcesses(1, worth_seconds=0)
    assert_same(processes.stream(encoded, Cursor(), 1), stream(plain, Cursor(), 1))
    processes.close()


def test_a_validation_epoch_ends_with_chunks_without_samples(world: SmallWorld) -> None:
    plain, encoded = (
        replace(source, plan=replace(source.plan, batch_size=19)) for source in sources(world, "grounding", "val")
    )
    steps = list(stream(plain, Cursor(), 1))
    assert [len(batch) for _, batch in steps[-1].chunks] == [1, 0, 0]
    assert_same(stream(encoded, Cursor(), 1), iter(steps))
    assert_same(stream(encoded, Cursor(), 1, 2, 3), stream(plain, Cursor(), 1, 2, 3))  # a rank without any


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_streams_on_ray_have_the_same_samples(world: SmallWorld) -> None:
    plain, encoded = sources(world, "grounding")
    budget = DataCpuBudget(1.0, 1.0)
    found = ray_stream.stream(encoded, Cursor(), 1, 0, 1, cpu_budget=budget, prefetch=1)
    assert_same(found, stream(plain, Cursor(), 1))


def test_a_step_waits_for_nothing_but_the_stream_of_copies(world: SmallWorld) -> None:
    """And there once a step, on the thread that makes the copies."""
    plain, encoded = sources(world, "grounding")
    steps = list(stream(encoded, Cursor(), 1))
    with PretendGpu() as gpu:
        for number, (step, twin) in enumerate(
            zip(on_device(iter(steps), "cuda"), stream(plain, Cursor(), 1), strict=True)
        ):
            ((line, count),) = gpu.waits.items()
            assert line.startswith("Stream.synchronize @ data/device_decoding.py:")
            assert (count, gpu.pageable.total()) == (number + 1, 0)
            for (_, batch), (_, other) in zip(step.chunks, twin.chunks, strict=True):
                assert batch.images.is_cuda
                assert batch.tokens.is_cuda
                assert not batch.attention_mask.is_cuda
                assert batch.images.shape == other.images.shape
    assert number == plain.plan.steps - 1


def test_steps_without_packed_crops_stay_what_they_are(world: SmallWorld, tmp_path: Path) -> None:
    plain, _ = sources(world, "grounding")
    step = next(stream(plain, Cursor(), 1))
    assert with_pixels(step, "cpu") is step
