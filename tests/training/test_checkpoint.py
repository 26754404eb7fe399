"""Checkpoints are whole or absent, verified when read, fenced; the last two and the best are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from groundray.data.plan import Cursor
from groundray.storage.folder import Folder
from groundray.training import attempts, recovery
from groundray.training.attempts import Attempt, FencingToken, Superseded
from groundray.training.checkpoint import Checkpoint, CheckpointStore, OtherFormat, take_snapshot
from groundray.training.worker import InProcess


def trained(seed: int) -> tuple[nn.Module, optim.Optimizer]:
    """Returns a small model and its Adam after two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def saved(
    store: CheckpointStore, cursor: Cursor, best: Cursor | None = None, seed: int = 0, stage: str = "grounding"
) -> str:
    """Save a checkpoint at a cursor and return its name; `best` is the cursor of the best one (default: the same)."""
    name = store.name(stage, cursor)
    of_best = store.name(stage, best or cursor)
    checkpoint = Checkpoint(name, stage, cursor, 10 * cursor.epoch + cursor.step, of_best, {"loss": 0.5}, saved_at=7.0)
    store.save(take_snapshot(checkpoint, *trained(seed), ()))
    return name


@pytest.fixture
def run(anywhere: str) -> Folder:
    return Folder.at(anywhere)


@pytest.fixture
def store(run: Folder) -> CheckpointStore:
    return CheckpointStore(Attempt(run, attempts.claim(run)))


def test_load_gives_what_was_saved(store: CheckpointStore) -> None:
    model, optimizer = trained(0)
    name = saved(store, Cursor(3, 5))
    found = store.last("grounding")
    assert found == Checkpoint(name, "grounding", Cursor(3, 5), 35, name, {"loss": 0.5}, saved_at=7.0)

    other, other_optimizer = trained(1)
    store.load(found, other, other_optimizer)
    for expected, loaded in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, loaded)
        for key, tensor in optimizer.state[expected].items():
            assert torch.equal(tensor, other_optimizer.state[loaded][key])


def test_snapshot_does_not_change_with_the_model(store: CheckpointStore) -> None:
    model, optimizer = trained(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(store.name("grounding", Cursor(1)), "grounding", Cursor(1), 10, None, {})
    copies = take_snapshot(checkpoint, model, optimizer, ())
    optimizer.step()
    store.save(copies)
    found = store.last("grounding")
    assert found is not None
    weights = store.weights(found)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def epochs(found: list[Checkpoint]) -> list[int]:
    return [checkpoint.cursor.epoch for checkpoint in found]


@pytest.mark.thorough
def test_last_two_best_and_the_one_before_the_best_are_kept(store: CheckpointStore) -> None:
    for epoch, best in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 3)]:
        saved(store, Cursor(epoch), Cursor(best))
    assert {one.best for one in store.committed("grounding")[1:]} == {store.name("grounding", Cursor(3))}
    assert epochs(store.committed("grounding")) == [2, 3, 5, 6]

    # 8 is the best now; if it is damaged the run resumes from 7, whose best is 3
    for epoch, best in [(7, 3), (8, 8), (9, 8), (10, 8)]:
        saved(store, Cursor(epoch), Cursor(best))
    assert epochs(store.committed("grounding")) == [3, 7, 8, 9, 10]
    assert len(store.folder.names()) == 5
    damage(store, store.name("grounding", Cursor(8)))
    assert epochs(store.usable("grounding", lambda _: None)) == [3, 7]


def test_stages_have_separate_checkpoints(store: CheckpointStore) -> None:
    saved(store, Cursor(1))
    saved(store, Cursor(2), stage="retrieval")
    assert [checkpoint.stage for checkpoint in store.committed("grounding")] == ["grounding"]


def test_folder_without_manifest_is_no_checkpoint_and_is_deleted(store: CheckpointStore) -> None:
    saved(store, Cursor(1))
    half = store.name("grounding", Cursor(2))
    (store.folder / half).make().write_bytes("model.safetensors", b"half")
    last = store.last("grounding")
    assert last is not None
    assert last.cursor == Cursor(1)
    saved(store, Cursor(3))
    assert half not in store.folder.names()


def test_empty_store_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.last("grounding") is None
    assert store.finished("grounding") is None


def damage(store: CheckpointStore, name: str, file: str = "model.safetensors") -> None:
    """Flip a bit of a checkpoint's file."""
    content = bytearray((store.folder / name).read_bytes(file))
    content[-1] ^= 1
    (store.folder / name).write_bytes(file, bytes(content))


def test_load_refuses_a_damaged_checkpoint(store: CheckpointStore) -> None:
    damage(store, saved(store, Cursor(1)))
    last = store.last("grounding")
    assert last is not None
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        store.load(last, trained(1)[0])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_checkpoint_before_a_damaged_one_is_used(store: CheckpointStore, file: str) -> None:
    first, second = saved(store, Cursor(1)), saved(store, Cursor(1, 4), Cursor(1))
    damage(store, second, file)
    warnings: list[str] = []
    assert [one.name for one in store.usable("grounding", warnings.append)] == [first]
    (warning,) = warnings
    assert second in warning
    assert file in warning
    assert store.usable("grounding", warnings.append)
    assert len(warnings) == 1  # it is quarantined, and not read again


def test_checkpoints_after_a_damaged_best_are_not_used(store: CheckpointStore) -> None:
    """Training resumes before the best epoch and repeats it: otherwise another epoch would be exported."""
    first = saved(store, Cursor(1))
    best = saved(store, Cursor(2))
    saved(store, Cursor(2, 5), Cursor(2))
    damage(store, best)
    warnings: list[str] = []
    assert [one.name for one in store.usable("grounding", warnings.append)] == [first]
    assert [best in warning for warning in warnings] == [True]


def test_finished_stage_with_a_damaged_best_is_not_intact(store: CheckpointStore) -> None:
    best = saved(store, Cursor(1))
    store.mark_finished("grounding", {"loss": 0.5}, best)
    done = store.finished("grounding")
    assert done is not None
    assert done.metrics == {"loss": 0.5}
    assert store.is_intact(done, pytest.fail)
    damage(store, best)
    warnings: list[str] = []
    assert not store.is_intact(done, warnings.append)
    assert best in warnings[0]


def rewrite_manifest(store: CheckpointStore, name: str, **changes: Any) -> None:
    """Write a checkpoint's manifest with other fields and its seal; None leaves a field out."""
    manifest = (store.folder / name).read_sealed("manifest.json") | changes
    (store.folder / name).write_sealed("manifest.json", {k: v for k, v in manifest.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99, "groundray": "7.5"}, r"format 99, this version .* format 3: .* groundray 7\.5"),
        ({"format": 2, "groundray": None}, r"format 2, this version .* the version of groundray that wrote it"),
        ({"format": None}, "no format"),
        ({"skipped": None}, "no skipped"),
        ({"files": None, "saved_at": None}, "no saved_at, files"),
    ],
)
def test_checkpoint_of_another_format_is_refused_and_kept(
    store: CheckpointStore, changes: dict[str, Any], message: str
) -> None:
    """It is neither damaged nor deleted, wherever it is met, and no stage starts anew without it."""
    saved(store, Cursor(1))
    other = saved(store, Cursor(2))
    rewrite_manifest(store, other, **changes)
    files = store.folder.files()
    content = (store.folder / other).read_bytes("manifest.json")
    for meet in (
        store.check_formats,
        lambda: store.usable("grounding", pytest.fail),
        lambda: store.committed("grounding"),
        lambda: store.last("grounding"),
        lambda: store.get(other),
        lambda: recovery.begin(store.attempt.run, ["grounding"], InProcess(pytest.fail)),
    ):
        with pytest.raises(OtherFormat, match=f"{other} has {message}"):
            meet()
    assert store.folder.files() == files
    assert (store.folder / other).read_bytes("manifest.json") == content


def test_number_of_the_format_can_be_damaged(store: CheckpointStore) -> None:
    """A flipped bit in it is damage: the run resumes from the checkpoint before."""
    first, second = saved(store, Cursor(1)), saved(store, Cursor(2))
    manifest = (store.folder / second).read_bytes("manifest.json")
    (store.folder / second).write_bytes("manifest.json", manifest.replace(b'"format": 3', b'"format": 2'))
    store.check_formats()
    warnings: list[str] = []
    assert [one.name for one in store.usable("grounding", warnings.append)] == [first]
    assert second in warnings[0]


def test_record_of_a_finished_stage_of_another_format_is_refused(store: CheckpointStore) -> None:
    best = saved(store, Cursor(1))
    store.mark_finished("grounding", {"loss": 0.5}, best)
    (name,) = (name for name in store.folder.names() if name.endswith(".json"))
    record = store.folder.read_sealed(name)
    store.folder.write_sealed(name, {key: value for key, value in record.items() if key != "format"})
    assert store.finished("grounding") is not None  # as an earlier version wrote it
    for changes, message in (({"format": 4}, "format 4"), ({"best": None}, "no best")):
        changed = {key: value for key, value in (record | changes).items() if value is not None}
        store.folder.write_sealed(name, changed)
        for meet in (store.check_formats, lambda: store.finished("grounding", pytest.fail)):
            with pytest.raises(OtherFormat, match=f"{name} has {message}"):
                meet()


def test_superseded_attempt_cannot_commit_or_delete(run: Folder, store: CheckpointStore) -> None:
    old = saved(store, Cursor(1))
    new = CheckpointStore(Attempt(run, attempts.claim(run), frozenset([old])))
    with pytest.raises(Superseded, match=r"attempt 2 .* attempt 1"):
        saved(store, Cursor(2))
    with pytest.raises(Superseded):
        store.mark_finished("grounding", {}, old)
    # it checked just before: its checkpoint is committed, at a later cursor
    stale = store.name("grounding", Cursor(9))
    manifest = (store.folder / old).read_sealed("manifest.json") | {"epoch": 9}
    (store.folder / stale).make().write_sealed("manifest.json", manifest)
    assert [one.name for one in new.committed("grounding")] == [old]
    assert [one.cursor.epoch for one in store.committed("grounding")] == [1, 9]


def test_each_attempt_takes_the_next_number(run: Folder) -> None:
    tokens = [attempts.claim(run) for _ in range(3)]
    assert [token.number for token in tokens] == [1, 2, 3]
    record = (run / "attempts").read_sealed(f"{tokens[1]}.json")
    assert {"host", "process", "began"} == record.keys()


def test_load_names_the_weights_that_do_not_fit(store: CheckpointStore) -> None:
    model, _ = trained(0)
    saved(store, Cursor(1))
    last = store.last("grounding")
    assert last is not None
    with pytest.raises(ValueError, match=r"grounding-00001-000000-a0001-\w{8} do not fit the model: missing 2\.weight"):
        store.load(last, nn.Sequential(*model.children()).append(nn.Linear(2, 2, bias=False)).requires_grad_(False))


def test_superseded_attempt_keeps_the_checkpoints_of_a_newer_one(
    run: Folder, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checked for a newer attempt, was suspended, and deletes after the newer one has written checkpoints."""
    for epoch in (1, 2):
        saved(store, Cursor(epoch), Cursor(2))
    newer = CheckpointStore(Attempt(run, attempts.claim(run), frozenset(store.folder.names())))
    kept = saved(newer, Cursor(5))
    monkeypatch.setattr(Attempt, "ensure_current", lambda _: None)
    saved(store, Cursor(3))
    assert newer.last("grounding") == newer.get(kept)


def claimed_at_once(
    run: Folder, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[FencingToken, FencingToken]:
    """Returns the tokens of two attempts that both list before either has written; the first one writes last."""
    real, tokens, seconds = Folder.write_json, iter([first, "99999999"]), []

    def late(folder: Folder, name: str, content: object) -> None:
        monkeypatch.setattr(Folder, "write_json", real)
        seconds.append(attempts.claim(run, nonce=lambda: second))
        real(folder, name, content)

    monkeypatch.setattr(Folder, "write_json", late)
    return attempts.claim(run, nonce=lambda: next(tokens)), seconds[0]


def test_one_of_two_simultaneous_attempts_owns_the_run(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The higher token owns the run; it accepts nothing that the other writes, and does not collide with it."""
    tokens = claimed_at_once(run, "22222222", "11111111", monkeypatch)
    assert tokens == (FencingToken(1, "22222222"), FencingToken(1, "11111111"))
    holds, lost = (CheckpointStore(Attempt(run, token)) for token in tokens)
    name = saved(holds, Cursor(1))
    with pytest.raises(Superseded):
        saved(lost, Cursor(1))
    monkeypatch.setattr(Attempt, "ensure_current", lambda _: None)  # it checked just before
    saved(lost, Cursor(1), seed=1)
    assert [one.name for one in holds.committed("grounding")] == [name]
    holds.load(holds.get(name), trained(0)[0])


def test_lower_of_two_simultaneous_tokens_takes_the_next_number(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claimed_at_once(run, "11111111", "22222222", monkeypatch) == (
        FencingToken(2, "99999999"),
        FencingToken(1, "22222222"),
    )


def test_failed_heartbeat_raises_nothing(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt(run, attempts.claim(run))

    def failing(*_: object) -> None:
        raise OSError("the storage is unreachable")

    monkeypatch.setattr(Folder, "write_json", failing)
    attempt.heartbeat("grounding", 3)
    assert attempt.last_heartbeat() is None
