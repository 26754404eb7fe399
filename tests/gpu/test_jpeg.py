"""nvJPEG: the crops of a GPU are those of the CPU within what its decoder rounds, and broken files are refused."""

from __future__ import annotations

import jpegs
import numpy as np
import pytest
import torch
from machines import ON_A_GPU

from groundray.data.batches import ImageBatch
from groundray.data.device_decoding import pixels_of
from groundray.data.image_decoder import UnusableImage
from groundray.data.image_inputs import CentreCrop, EncodedCrops, RandomCrop
from groundray.training.jpeg_decoding import _try_decoder

pytestmark = ON_A_GPU
# nvJPEG repeats subsampled colours where libjpeg interpolates them
MOST, MEAN = 24, 2.0


def crops_on_gpu(crops: CentreCrop | RandomCrop, files: dict[str, bytes]) -> np.ndarray:
    arrays = EncodedCrops(crops).arrays(crops.draw(jpegs.table(files), 0))
    batch = ImageBatch.of_images(list(files), arrays).map(lambda tensor: tensor.pin_memory())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        (images,) = pixels_of([batch], "cuda")
    stream.synchronize()
    assert images.is_cuda
    return images.cpu().numpy()


@pytest.mark.parametrize("crops", [CentreCrop(57, 56), RandomCrop(40, (0.5, 1.0), flip=True, seed=1)], ids=str)
def test_crops_are_those_of_the_cpu(crops: CentreCrop | RandomCrop) -> None:
    _try_decoder("cuda")
    files = {**jpegs.plain(), **jpegs.others()}
    expected = crops.arrays(crops.draw(jpegs.table(files), 0))
    for name, ours, twin in zip(files, crops_on_gpu(crops, files), expected, strict=True):
        difference = np.abs(ours.astype(int) - twin)
        print(f"{name:20} most {difference.max():3} mean {difference.mean():.3f}")
        if name in jpegs.others():
            assert not difference.any(), name
        else:
            assert difference.max() <= MOST, name
            assert difference.mean() <= MEAN, name


def test_pixels_are_the_same_in_any_batch_and_at_each_call() -> None:
    crops = RandomCrop(40, (0.5, 1.0), flip=True, seed=1)
    files = {f"{name} {copy}": file for copy in range(20) for name, file in jpegs.plain().items()}
    together = dict(zip(files, crops_on_gpu(crops, files), strict=True))
    backwards = dict(reversed(files.items()))
    for _ in range(3):
        for name, pixels in zip(backwards, crops_on_gpu(crops, backwards), strict=True):
            assert np.array_equal(pixels, together[name]), name
    for name in list(files)[:5]:
        assert np.array_equal(crops_on_gpu(crops, {name: files[name]})[0], together[name]), name


def test_a_jpeg_with_damaged_tables_is_refused_and_the_next_is_decoded() -> None:
    file = jpegs.plain()["4:2:0"]
    crops = CentreCrop(57, 56)
    with pytest.raises(UnusableImage):
        crops_on_gpu(crops, {"whole": file, "damaged": jpegs.without_tables(file)})
    assert crops_on_gpu(crops, {"whole": file}).any()
