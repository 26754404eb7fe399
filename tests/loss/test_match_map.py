"""The match map's similarity against its naive twin, in value and gradient."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_gpu import PretendGpu
from torch import Tensor
from torch.nn import functional as F

from groundray.loss import match_map
from groundray.loss.match_map import Kind, Sizes, position_type, similarity, similarity_to_words

KINDS: list[Kind] = ["dot", "cosine"]


def embeddings(images: int = 3, captions: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """V [image 5 6], W [caption 4 6] in float64 with gradient, and masks of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(images, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    W = torch.randn(captions, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    lengths = torch.tensor([4, 2, 1, 3])[:captions]
    return V, W, torch.arange(4) < lengths[:, None]


def larger(dtype: torch.dtype = torch.float32, width: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    """V [24 49 width], W [24 12 width] with gradient, and masks with gaps; one caption has no valid token."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(24, 49, width, generator=generator).to(dtype).requires_grad_()
    W = torch.randn(24, 12, width, generator=generator).to(dtype).requires_grad_()
    valid = torch.rand(24, 12, generator=generator) < 0.6
    valid[5] = False
    return V, W, valid


def gradients(S: Tensor, V: Tensor, W: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a sum of S with distinct weights."""
    weights = torch.randn(S.shape, dtype=S.dtype, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((S * weights).sum(), [V, W], retain_graph=True)


def assert_equals_twin(V: Tensor, W: Tensor, valid: Tensor, kind: Kind) -> None:
    ours, twins = similarity(V, W, valid, kind), reference.similarity(V, W, valid, kind)
    torch.testing.assert_close(ours, twins, rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(gradients(ours, V, W), gradients(twins, V, W), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_similarity_of_a_written_out_pair() -> None:
    V = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    W = torch.tensor([[[3.0, 1.0], [0.0, 1.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, False]])
    # token 0 matches the positions with 3 and 2, token 1 with 0 and 2; token 2 is padding
    assert similarity(V, W, valid).tolist() == [[2.5]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [1, 2**20])
def test_similarity_equals_its_naive_twin(kind: Kind, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(match_map.SIZES, "cpu", Sizes(tile, tile, tile))
    assert_equals_twin(*embeddings(), kind)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_similarity_equals_its_naive_twin_in_every_shape(data: st.DataObject) -> None:
    """Small whole numbers give many ties between positions. Any tokens are valid, or none."""
    images, positions, captions, tokens, dim = (data.draw(st.integers(1, largest)) for largest in (4, 6, 5, 4, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))

    def whole(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).double().requires_grad_()

    V, W = whole(images, positions, dim), whole(captions, tokens, dim)
    fraction = data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    valid = torch.rand(captions, tokens, generator=generator) < fraction
    with pytest.MonkeyPatch.context() as patch:
        sizes = Sizes(*(data.draw(st.integers(1, largest)) for largest in (8, 200, 60)))
        patch.setitem(match_map.SIZES, "cpu", sizes)
        assert_equals_twin(V, W, valid, "dot")


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_finite_differences(kind: Kind) -> None:
    V, W, valid = embeddings()
    valid[1] = False
    assert torch.autograd.gradcheck(lambda V, W: similarity(V, W, valid, kind), (V, W))


def test_first_of_equal_positions_has_the_gradient() -> None:
    V = torch.ones(1, 3, 2, requires_grad=True)
    W = torch.ones(1, 1, 2)
    similarity(V, W, torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert V.grad is not None
    assert V.grad.tolist() == [[[1, 1], [0, 0], [0, 0]]]


def test_caption_without_valid_token_has_similarity_zero() -> None:
    V, W, valid = embeddings()
    valid[1] = False
    S = similarity(V, W, valid)
    assert S[:, 1].tolist() == [0.0, 0.0, 0.0]
    for gradient in torch.autograd.grad(S[:, 1].sum(), [V, W]):
        assert gradient.abs().sum() == 0


def test_padding_does_not_change_the_similarity() -> None:
    V, W, valid = embeddings()
    longer = torch.cat([W, torch.full((4, 2, 6), 1e6, dtype=W.dtype)], dim=1)
    mask = torch.cat([valid, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(similarity(V, W, valid), similarity(V, longer, mask))
    assert torch.equal(similarity(V, W, valid), similarity_to_words(V, W[valid], valid))


@pytest.mark.parametrize(("images", "captions", "tokens"), [(0, 4, 4), (3, 0, 4), (3, 0, 0), (0, 0, 0), (3, 4, 0)])
def test_empty_inputs_have_similarity_zero(images: int, captions: int, tokens: int) -> None:
    V, W = torch.zeros(images, 5, 6, requires_grad=True), torch.zeros(captions, tokens, 6, requires_grad=True)
    S = similarity(V, W, torch.ones(captions, tokens, dtype=torch.bool))
    assert S.tolist() == [[0.0] * captions] * images
    assert [gradient.shape for gradient in torch.autograd.grad(S.sum(), [V, W])] == [V.shape, W.shape]


def test_repeated_calls_give_the_same_bits() -> None:
    V, W, valid = larger()
    first = similarity(V, W, valid)
    for _ in range(3):
        again = similarity(V, W, valid)
        assert torch.equal(again, first)
        assert all(map(torch.equal, gradients(first, V, W), gradients(again, V, W)))


@pytest.mark.parametrize("width", [1, 7, 37, 64])
@pytest.mark.parametrize("block", [1, 2, 6])
def test_rows_of_a_block_have_the_same_bits_whatever_the_other_blocks(width: int, block: int) -> None:
    """Also at other addresses: with few positions of odd width, images are not aligned to cache lines."""
    V, W, valid = larger(width=width)
    for images in (V, V[:, :5].contiguous(), V[:, :1].contiguous()):
        together = similarity_to_words(images, W.flatten(0, 1), valid, block)
        separate = [similarity_to_words(part.clone(), W[valid], valid, block) for part in images.split(block)]
        assert torch.equal(torch.cat(separate), together)


def test_gradient_of_words_is_the_sum_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, as two ranks add their gradients: a sum of two does not depend on their order."""
    monkeypatch.setitem(match_map.SIZES, "cpu", match_map.SIZES["cpu"]._replace(rows=49 * 64 * 5))
    V, W, valid = larger(width=64)
    words = W.detach()[valid].requires_grad_()
    weights = torch.randn(24, 24, generator=torch.Generator().manual_seed(1))
    (together,) = torch.autograd.grad((similarity_to_words(V, words, valid, 12) * weights).sum(), words)
    separate = [
        torch.autograd.grad((similarity_to_words(V[block], words, valid, 12) * weights[block]).sum(), words)[0]
        for block in (slice(0, 12), slice(12, 24))
    ]
    assert torch.equal(sum(separate), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_have_the_bits_of_a_plain_product(dtype: torch.dtype) -> None:
    """Also beside a caption of two tokens, whose mean is computed."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(30, 1, 64, generator=generator, dtype=dtype)
    W = torch.randn(40, 2, 64, generator=generator, dtype=dtype)
    valid = torch.ones(40, 2, dtype=torch.bool)
    valid[:, 1] = False
    product = V[:, 0] @ W[:, 0].T
    assert torch.equal(similarity_to_words(V, W[:, 0], valid), product)
    valid[7, 1], valid[8, 0] = True, False
    S = similarity(V, W, valid)
    product[:, 7] = (product[:, 7] + V[:, 0] @ W[7, 1]) / 2
    product[:, 8] = 0
    torch.testing.assert_close(S, product)


def test_similarity_is_the_same_without_gradient() -> None:
    V, W, valid = larger()
    with torch.no_grad():
        assert torch.equal(similarity(V, W, valid), similarity(V, W, valid))
    assert torch.equal(similarity(V.detach(), W.detach(), valid), similarity(V, W, valid).detach())


def test_half_precision_is_accumulated_in_float32() -> None:
    """The product of two bfloat16 is exact in float32: only the final gradients are rounded."""
    V, W, valid = larger(torch.bfloat16)
    wide = [V.detach().float().requires_grad_(), W.detach().float().requires_grad_()]
    S, expected = similarity(V, W, valid), similarity(*wide, valid)
    assert S.dtype == torch.float32
    assert torch.equal(S, expected)
    for half, full in zip(gradients(S, V, W), gradients(expected, *wide), strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, full.bfloat16())


def test_cosine_of_half_precision_has_lengths_in_float32() -> None:
    """A length of bfloat16 would be off by up to 1 in 256, and with it all matches of a position or token."""
    V, W, valid = embeddings()
    halves = [x.detach().bfloat16().requires_grad_() for x in (V, W)]
    units = [F.normalize(x.double(), dim=-1).bfloat16().double() for x in halves]
    S, expected = similarity(*halves, valid, "cosine"), reference.similarity(*units, valid, "dot")
    torch.testing.assert_close(S.double(), expected, rtol=1e-6, atol=1e-6)
    twins = [x.detach().double().requires_grad_() for x in halves]
    found = gradients(S, *halves)
    for half, full in zip(found, gradients(reference.similarity(*twins, valid, "cosine"), *twins), strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), full, rtol=0.02, atol=0.01)


def test_words_of_half_precision_may_be_held_in_float32() -> None:
    """As ranks do, which then add up the words' gradients in float32."""
    V, W, valid = larger(torch.bfloat16)
    wide = W.detach().float().requires_grad_()
    S, expected = similarity(V, wide, valid), similarity(V, W, valid)
    assert torch.equal(S, expected)
    for found, half in zip(gradients(S, V, wide), gradients(expected, V, W), strict=True):
        assert torch.equal(found.bfloat16(), half)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_gpu_multiplies_in_the_type_of_the_embeddings(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums and results of half precision are in float32, as on a CPU. A mask on the host is read without a wait."""
    V, W, valid = larger(dtype)
    expected = similarity(V, W, valid)
    product = mock.Mock(wraps=torch.mm)
    monkeypatch.setattr(torch, "mm", product)
    with PretendGpu() as gpu:
        on_gpu = [x.detach().to("cuda").requires_grad_() for x in (V, W)]
        gpu.reset()
        S = similarity(*on_gpu, valid)
        found = torch.autograd.grad(S, on_gpu, torch.ones_like(S))
        assert gpu.waits.total() == 0
    assert {call.args[0].dtype for call in product.call_args_list} == {dtype}
    assert S.dtype == expected.dtype
    torch.testing.assert_close(S, expected)
    for ours, others in zip(found, torch.autograd.grad(expected.sum(), [V, W]), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, others)


@pytest.mark.parametrize(("images", "most"), [(180, 100), (45, 40)], ids=["one rank", "one of four"])
def test_a_gpu_computes_match_maps_in_few_launches(images: int, most: int) -> None:
    """A batch of 180 in four chunks, forward and backward; with a CPU's tiles there are hundreds."""
    valid = torch.ones(180, 14, dtype=torch.bool)
    with PretendGpu() as gpu:
        V, words = (
            torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((images, 196, 8), (180 * 14, 8))
        )
        gpu.reset()
        similarity_to_words(V, words, valid, block=45).sum().backward()
    assert 0 < gpu.launches.total() <= most, gpu.launches


def test_autocast_does_not_change_the_similarity() -> None:
    V, W, valid = larger()
    S = similarity(V, W, valid)
    with torch.autocast("cpu", torch.bfloat16):
        cast = similarity(V, W, valid)
        assert torch.equal(cast, S)
        assert all(map(torch.equal, gradients(cast, V, W), gradients(S, V, W)))


@pytest.mark.parametrize(
    ("positions", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (2**15 + 1, torch.int32)]
)
def test_best_positions_are_stored_in_the_smallest_type(positions: int, dtype: torch.dtype) -> None:
    V = torch.zeros(2, positions, 1)
    V[0, -1], V[1, positions // 2] = 1, 1
    V.requires_grad_()
    W, valid = torch.tensor([[[2.0], [9.0]]]), torch.tensor([[True, False]])
    assert position_type(positions) == dtype
    S, best = torch.ops.groundray.best_matches(V, W.flatten(0, 1), valid, 2, True)
    assert S.tolist() == [[2.0], [2.0]]
    assert best.dtype == dtype
    assert best.tolist() == [[positions - 1], [positions // 2]]
    (gradient,) = torch.autograd.grad(S.sum(), V)
    assert gradient.nonzero()[:, :2].tolist() == [[0, positions - 1], [1, positions // 2]]


def test_operators_pass_torchs_checks() -> None:
    V, W, valid = embeddings()
    words = W.detach().flatten(0, 1).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.groundray.best_matches.default, (V, words, valid, 3, True), test_utils=checks)


COMPILED = """
import torch
from groundray.loss.match_map import similarity

def loss(V, W, valid):
    return similarity(V * 2, W, valid, "cosine").square().sum()

V = torch.randn(6, 9, 5, dtype=torch.float64, requires_grad=True)
W = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
for count in (3, 1):
    valid = (torch.arange(4) < count).repeat(6, 1)
    for ours, expected in zip(*(torch.autograd.grad(f(V, W, valid), [V, W]) for f in (compiled, loss))):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
with torch.no_grad():
    torch.testing.assert_close(compiled(V, W, valid), loss(V, W, valid), rtol=1e-12, atol=1e-12)
"""


@pytest.mark.thorough
def test_similarity_compiles_as_one_graph() -> None:
    """In a process of its own, without the run-time shape checks, which cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


MEMORY = """
import torch
from groundray.loss.match_map import similarity
from groundray.resident_memory import peak_resident

def peak(batch):
    V, W = torch.randn(batch, 49, 64, requires_grad=True), torch.randn(batch, 32, 64, requires_grad=True)
    similarity(V, W, torch.ones(batch, 32, dtype=torch.bool)).sum().backward()
    return peak_resident() / 2**20

small = peak(8)
print(peak(256) - small)
"""


@pytest.mark.thorough
def test_match_maps_are_never_stored() -> None:
    """256 x 256 match maps of 49 x 32 are 411 MB; best positions are 2 MB, inputs and gradients 10, blocks 50."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


def test_match_map_of_a_pair() -> None:
    V, W, _ = embeddings()
    assert torch.equal(match_map.match_map(V[0], W[0]), V[0] @ W[0].T)
    assert match_map.match_map(V[0], W[0], "cosine").abs().max() <= 1 + 1e-12
