"""Ranks counted in blocks against those read off the whole similarity matrix, on one, two and four processes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from nccl_rules import nccl_rules
from pretend_gpu import PretendGpu
from tiers import thorough
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from groundray.distributed import barrier
from groundray.loss import match_map
from groundray.loss.match_map import Kind, Sizes
from groundray.stage import pool
from groundray.stage.metrics import MatchedRanks
from groundray.stage.recall import matched_ranks

CPU = torch.device("cpu")
IMAGES, POSITIONS, TOKENS, WIDTH = 23, 5, 6, 8


class Pool(NamedTuple):
    """Images, their captions, and the image of each caption."""

    V: Tensor
    W: Tensor
    valid: Tensor
    image_of: Tensor

    def ranks(self, parts: int = 4, kind: Kind = "dot", device: torch.device = CPU) -> MatchedRanks:
        """Return the ranks of the pool in parts: those of captions are not those of images."""
        images, captions, valid = (
            x.split(size) for x, size in zip(self[:3], (parts, parts + 1, parts + 1), strict=True)
        )
        return matched_ranks(images, captions, valid, kind, device, self.image_of)

    def naive(self) -> MatchedRanks:
        """Return the ranks read off the whole matrix of dot products."""
        import reference  # not in each rank's process: it imports scipy

        best = torch.einsum("ipd,ctd->ictp", self.V.double(), self.W.double()).amax(dim=3)
        S = best.where(self.valid, 0).sum(dim=2) / self.valid.sum(dim=1).clamp(min=1)
        return MatchedRanks(*map(torch.tensor, reference.matched_ranks(S.tolist(), self.image_of.tolist())))

    def of(self, images: slice) -> Pool:
        """Return some of the images, with their captions."""
        own = (self.image_of >= images.start) & (self.image_of < images.stop)
        return Pool(self.V[images], self.W[own], self.valid[own], self.image_of[own] - images.start)


def made_pool(captions: int = IMAGES, seed: int = 0, dtype: torch.dtype = torch.float32, positions: int = 5) -> Pool:
    """Return small whole numbers, whose products are exact in every type and order: many scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    V = torch.randint(-1, 2, (IMAGES, positions, WIDTH), generator=generator).to(dtype)
    W = torch.randint(-1, 2, (captions, TOKENS, WIDTH), generator=generator).to(dtype)
    lengths = torch.tensor([0, 1, 2, 4])[torch.randint(4, (captions, 1), generator=generator)]
    image_of = torch.arange(captions) if captions == IMAGES else torch.randint(IMAGES, (captions,), generator=generator)
    return Pool(V, W, torch.arange(TOKENS) < lengths, image_of.sort().values)


def assert_equal(found: MatchedRanks, expected: MatchedRanks) -> None:
    assert found.text_to_image.tolist() == expected.text_to_image.tolist()
    assert found.image_to_text.tolist() == expected.image_to_text.tolist()


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, words: int = 7) -> None:
    """Compute two images and a few words at a time, and send one tile in a round."""
    monkeypatch.setitem(match_map.SIZES, "cpu", Sizes(words, 2 * words * POSITIONS, 4 * POSITIONS * WIDTH))
    monkeypatch.setitem(pool.WORDS, "cpu", words)


@pytest.mark.parametrize("words", [1, 7, 480])
@pytest.mark.parametrize("captions", [IMAGES, thorough(70), 9])
@pytest.mark.parametrize("parts", [thorough(1), 4, thorough(100)])
def test_ranks_are_those_of_the_whole_matrix(
    captions: int, parts: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one caption an image, several, or none."""
    in_small_blocks(monkeypatch, words)
    for seed in range(3):
        some = made_pool(captions, seed)
        assert (len(some.image_of.unique()) == IMAGES) == (captions == IMAGES)
        assert_equal(some.ranks(parts), some.naive())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_ranks_in_every_type(dtype: torch.dtype) -> None:
    some = made_pool(40, dtype=dtype)
    assert_equal(some.ranks(), some.naive())


def test_ranks_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One position and one token: a plain product."""
    in_small_blocks(monkeypatch, 12)
    V, W, _, image_of = made_pool(40, positions=1)
    some = Pool(V, W[:, :1], torch.ones(40, 1, dtype=torch.bool), image_of)
    assert_equal(some.ranks(), some.naive())


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [37, 64])
def test_equal_embeddings_tie_wherever_they_are(kind: Kind, dtype: torch.dtype, width: int) -> None:
    """To the last bit, in several blocks and tiles: each of three equal images and captions has the rank of all."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(331, 100, width, generator=generator, dtype=dtype).repeat(3, 1, 1)
    W = (V[:331, :9] + 0.1 * torch.randn(331, 9, width, generator=generator, dtype=dtype)).repeat(3, 1, 1)
    lengths = torch.randint(1, 10, (331, 1), generator=generator).repeat(3, 1)
    own = Pool(V, W, torch.arange(9) < lengths, torch.arange(993))
    assert pool.ImageBlocks(own.V.split(50), kind, CPU).size < 500
    found = own.ranks(50, kind)
    for ranks in found:
        assert (ranks.view(3, 331) == ranks[:331]).all()
        assert (ranks % 3 == 0).all()
        assert (ranks == 3).sum() > 900


def test_ties_of_all_have_the_last_rank() -> None:
    some = Pool(torch.ones(7, 2, 3), torch.ones(7, 2, 3), torch.ones(7, 2, dtype=torch.bool), torch.arange(7))
    assert_equal(some.ranks(3), MatchedRanks(torch.full((7,), 7), torch.full((7,), 7)))


def test_one_sample_has_rank_one() -> None:
    assert_equal(made_pool().of(slice(3, 4)).ranks(), MatchedRanks(torch.tensor([1]), torch.tensor([1])))


def test_what_is_not_a_number_counts_against_the_query() -> None:
    """Image 1 and caption 2 are NaN: their own ranks are the last, and they are before every other candidate."""
    eye = torch.eye(4)[:, None]
    V, W = eye.clone(), eye.clone()
    V[1], W[2] = torch.nan, torch.nan
    some = Pool(V, W, torch.ones(4, 1, dtype=torch.bool), torch.arange(4))
    assert_equal(some.ranks(), MatchedRanks(torch.tensor([2, 4, 4, 2]), torch.tensor([2, 4, 4, 2])))


def test_an_image_is_ranked_by_the_best_of_its_captions() -> None:
    """Its other captions are no candidates, and a caption that is not a number is not the best."""
    V = torch.eye(3)[:, None]
    W = torch.tensor([[0.5, 0.9, 0.0], [0.8, 0.9, 0.0], [0.8, 0.1, 0.0], [0.0, torch.nan, 0.0], [0.6, 0.7, 0.1]])
    some = Pool(V, W[:, None], torch.ones(5, 1, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1]))
    # image 0: .8 against NaN and .6; image 1: .7 against .9, .9 and .1; image 2 has none
    assert some.ranks().image_to_text.tolist() == [2, 3]
    assert some.ranks().text_to_image.tolist() == [2, 2, 1, 3, 1]


def test_images_without_a_matching_number_of_captions_are_an_error() -> None:
    V, W, valid, _ = made_pool(40)
    with pytest.raises(ValueError, match="40 captions"):
        matched_ranks([V], [W], [valid], "dot", CPU)


def test_a_pool_on_the_host_is_ranked_on_a_gpu() -> None:
    some = made_pool(40)
    with PretendGpu() as gpu:
        found = some.ranks(device=torch.device("cuda"))
        assert gpu.launches["groundray::best_matches"] or gpu.launches["aten::amax"]
        assert gpu.pageable.total() == 0
    assert_equal(found, some.naive())


CUTS = {
    1: [(23,)],
    2: [(9, 23), (0, 23), (22, 23)],
    4: [(5, 11, 17, 23), (0, 3, 3, 23), (20, 20, 20, 23), (0, 0, 23, 23)],
}
POOLS = [made_pool(), made_pool(70, 1), made_pool(70, 2, torch.bfloat16), made_pool(9, 3, torch.float64)]


def on_a_rank(rank: int, size: int, folder: str) -> None:
    """Run in a process of its own: save the ranks of each pool, divided in each way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    found = []
    with pytest.MonkeyPatch.context() as monkeypatch, nccl_rules():
        in_small_blocks(monkeypatch)
        for cuts in CUTS[size]:
            own = slice((0, *cuts)[rank], cuts[rank])
            found += [tuple(some.of(own).ranks(parts)) for some in POOLS for parts in (2, 9)]
    torch.save(found, f"{folder}/{rank}.pt")
    barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [thorough(1), 2, thorough(4)])
def test_every_process_has_the_ranks_of_all(size: int, tmp_path: Path) -> None:
    """However the images are divided: some processes have none, and some images have no caption."""
    spawn(on_a_rank, (size, str(tmp_path)), nprocs=size)
    expected = [some.naive() for some in POOLS for _ in (2, 9)] * len(CUTS[size])
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for ours, naive in zip(found, expected, strict=True):
            assert_equal(MatchedRanks(*ours), naive)
