"""Checkpoints: whole or not at all, checked when read, the last and the best kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn, optim

from groundray.data.plan import Cursor
from groundray.storage import Folder
from groundray.training.checkpoint import Store


def trained(seed: int) -> tuple[nn.Module, optim.Optimizer]:
    """A small model and its Adam after two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder.at(tmp_path / "checkpoints"))


def test_what_is_saved_is_what_is_loaded(store: Store) -> None:
    model, optimizer = trained(0)
    store.save("grounding", Cursor(3, 5), model, optimizer, {"loss": 0.5}, best=True)
    found = store.last("grounding")
    assert found is not None
    assert (found.cursor, found.metrics, found.best) == (Cursor(3, 5), {"loss": 0.5}, True)

    other, other_optimizer = trained(1)
    store.load(found, other, other_optimizer)
    for expected, loaded in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, loaded)
        for name, tensor in optimizer.state[expected].items():
            assert torch.equal(tensor, other_optimizer.state[loaded][name])


def test_the_last_and_the_best_are_kept(store: Store) -> None:
    model, optimizer = trained(0)
    for epoch, best in [(1, True), (2, True), (3, False), (4, False)]:
        store.save("grounding", Cursor(epoch), model, optimizer, {"loss": float(epoch)}, best)
    assert [checkpoint.cursor.epoch for checkpoint in store.committed("grounding")] == [2, 4]
    best_one = store.best("grounding")
    assert best_one is not None
    assert best_one.metrics == {"loss": 2.0}
    assert store.folder.names() == ["grounding-00002-000000", "grounding-00004-000000"]


def test_stages_do_not_disturb_each_other(store: Store) -> None:
    model, optimizer = trained(0)
    store.save("grounding", Cursor(1), model, optimizer, {}, best=True)
    store.save("retrieval", Cursor(2), model, optimizer, {}, best=True)
    assert [checkpoint.stage for checkpoint in store.committed("grounding")] == ["grounding"]


def test_a_folder_without_manifest_is_no_checkpoint(store: Store) -> None:
    model, optimizer = trained(0)
    store.save("grounding", Cursor(1), model, optimizer, {}, best=True)
    (store.folder / "grounding-00002-000000").make().write_bytes("model.safetensors", b"half")
    last = store.last("grounding")
    assert last is not None
    assert last.cursor == Cursor(1)


def test_an_empty_store_has_no_checkpoint(store: Store) -> None:
    assert store.last("grounding") is None
    assert store.best("grounding") is None


def test_a_flipped_byte_is_found(store: Store, tmp_path: Path) -> None:
    model, optimizer = trained(0)
    store.save("grounding", Cursor(1), model, optimizer, {}, best=True)
    file = tmp_path / "checkpoints" / "grounding-00001-000000" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    last = store.last("grounding")
    assert last is not None
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        store.load(last, model)


def test_weights_of_another_model_are_refused_by_name(store: Store) -> None:
    model, optimizer = trained(0)
    store.save("grounding", Cursor(1), model, optimizer, {}, best=True)
    last = store.last("grounding")
    assert last is not None
    with pytest.raises(ValueError, match=r"grounding-00001-000000 is not of this model: it lacks 2\.weight"):
        store.load(last, nn.Sequential(*model.children()).append(nn.Linear(2, 2, bias=False)).requires_grad_(False))
