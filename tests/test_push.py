"""`python -m groundray.push` against a stand-in for the hub: what arrives there, and what loads from it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import torch
from conftest import SmallWorld
from hub_server import OWNER, READ_TOKEN, STALE_TOKEN, TOKEN, Hub
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load_file
from search_fixtures import write_model
from servers import Server
from transformers import AutoModel, AutoTokenizer

from groundray import push
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.tracking import mlflow_model

NAME = f"{OWNER}/grounded"
# pushes to the hub that HF_ENDPOINT names, and loads from it
PUSH_AND_LOAD = """
import sys
from groundray import push
from transformers import AutoModel, AutoTokenizer

checkpoint, name, out = sys.argv[1:]
assert push.main(["--checkpoint", checkpoint, "--to", name]) == 0
AutoModel.from_pretrained(name, subfolder="language").save_pretrained(out)
AutoTokenizer.from_pretrained(name, subfolder="language").save_pretrained(out)
"""


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_model(tmp_path_factory.mktemp("push") / "model", world))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server.serve() as server:
        server.use(monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "login"))
        yield server


def pushed(model: object, *words: str, to: str = NAME) -> int:
    return push.main([f"--checkpoint={model}", f"--to={to}", *words])


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in Folder.at(folder).files()}


def in_hub(hub: Hub, name: str = NAME, revision: str = "main") -> dict[str, bytes]:
    files = dict(hub.repositories[name].files(revision))
    del files[".gitattributes"]
    return files


def test_a_pushed_model_is_downloaded_and_loads_with_equal_weights(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(model, "--message=first") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"hub  {hub.endpoint}/{NAME}"
    assert TOKEN not in said.out + said.err
    assert in_hub(hub) == content(model)
    assert hub.repositories[NAME].messages == ["initial commit", "first"]
    assert not hub.repositories[NAME].private
    uploads = hub.uploads()
    assert uploads
    assert {hub.sent["PUT", path] for path in uploads} == {""}  # storage does not get the token
    local = snapshot_download(NAME, cache_dir=tmp_path)
    expected, found = export.load(model).model.state_dict(), export.load(local).model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_second_push_sends_nothing_and_a_changed_card_alone(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cards are the user's, and pushed as they are in the folder."""
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    assert pushed(copied) == 0
    sent, commits = len(hub.uploads()), dict(hub.repositories[NAME].commits)
    capsys.readouterr()
    assert pushed(copied) == 0
    assert "holds these files already" in capsys.readouterr().out
    assert len(hub.uploads()) == sent
    assert hub.repositories[NAME].commits == commits
    card = (copied / "README.md").read_text().replace("# demo", "# My own title")
    (copied / "README.md").write_text(card)
    assert pushed(copied) == 0
    assert len(hub.uploads()) == sent
    assert in_hub(hub)["README.md"].decode() == card
    assert len(hub.repositories[NAME].commits) == len(commits) + 1


@pytest.mark.thorough
def test_the_environment_names_the_hub_and_transformers_loads_a_stream_as_a_subfolder(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", PUSH_AND_LOAD, str(model), NAME, str(tmp_path / "loaded")]
    done = subprocess.run(command, env={**os.environ, **places, "HF_TOKEN": TOKEN}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert in_hub(hub) == content(model)
    expected, found = (load_file(where / "model.safetensors") for where in (model / "language", tmp_path / "loaded"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    texts = ["a red star"]
    tokenizers = [AutoTokenizer.from_pretrained(where) for where in (model / "language", tmp_path / "loaded")]
    assert tokenizers[0](texts) == tokenizers[1](texts)


@pytest.mark.thorough
def test_a_stream_alone_loads_by_the_name_of_its_repository(hub: Hub, model: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="extra `models` is not installed")
    assert pushed(model, "--stream=language") == 0
    assert in_hub(hub) == content(model / "language")
    exported = export.load(model)
    encoded = exported.tokenizer(["a red star"], return_tensors="pt")
    with torch.no_grad():
        expected = exported.model.language(encoded.input_ids, encoded.attention_mask.bool())[0]
        alone = AutoModel.from_pretrained(NAME, cache_dir=tmp_path)(**encoded).last_hidden_state[0]
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)
    found = library.SentenceTransformer(NAME, cache_folder=str(tmp_path), device="cpu").encode("a red star")
    torch.testing.assert_close(torch.from_numpy(found), expected.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_repository_holds_exactly_the_model_pushed_last(hub: Hub, model: Path) -> None:
    """A stream after a whole model, and the other way round: no weights of the other are left at the root."""
    assert pushed(model) == 0
    hub.repositories[NAME].files()["LICENSE"] = b"mine"  # which no push wrote
    for words, folder in (("--stream=language-grounded",), model / "language-grounded"), ((), model):
        assert pushed(model, *words) == 0
        assert in_hub(hub) == {**content(folder), "LICENSE": b"mine"}


def test_of_a_model_in_mlflow_the_run_s_own_export_is_pushed(hub: Hub, model: Path, tmp_path: Path) -> None:
    logged = Path(shutil.copytree(model, tmp_path / "logged"))
    mlflow_model.write(logged, "0" * 32, "m-0", str(logged))
    assert pushed(logged) == 0
    assert in_hub(hub) == content(model)
    assert pushed(model) == 0  # the same files
    assert len(hub.repositories[NAME].commits) == 2
    assert pushed(logged, "--stream=language", to=f"{OWNER}/stream") == 0
    assert in_hub(hub, f"{OWNER}/stream") == content(model / "language")
    assert (logged / mlflow_model.ENTRY).exists()  # which is left as it was


def test_a_branch_and_a_private_repository_are_made(hub: Hub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pushed(model, "--private", "--revision=next", "--stream=language") == 0
    repository = hub.repositories[NAME]
    assert repository.private
    assert in_hub(hub) == {}
    assert in_hub(hub, revision="next") == content(model / "language")
    assert capsys.readouterr().out.endswith(f"{NAME}/tree/next\n")
    assert pushed(model, "--private", "--revision=next", "--stream=language") == 0
    assert len(repository.commits) == 2
    hub.make(f"{OWNER}/public")
    assert pushed(model, "--private", to=f"{OWNER}/public") == 1
    assert in_hub(hub, f"{OWNER}/public") == {}


def test_a_licence_is_added_to_the_card_that_is_pushed(hub: Hub, model: Path) -> None:
    before = content(model)
    assert pushed(model, "--license=apache-2.0") == 0
    assert content(model) == before
    ours, theirs = ModelCard(before["README.md"].decode()), ModelCard(in_hub(hub)["README.md"].decode())
    assert ours.data.license is None
    assert theirs.data.license == "apache-2.0"
    assert theirs.data.eval_results == ours.data.eval_results != []
    assert theirs.text.strip() == ours.text.strip()
    commits = len(hub.repositories[NAME].commits)
    assert pushed(model, "--license=apache-2.0") == 0
    assert len(hub.repositories[NAME].commits) == commits


def test_a_model_in_a_store_is_pushed(hub: Hub, model: Path, s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    Folder.at(url).upload(model)
    assert pushed(url, "--stream=language") == 0
    assert in_hub(hub) == content(model / "language")


def test_a_dry_run_lists_the_files_and_asks_no_hub(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert pushed(model, "--dry-run") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {words[1] for words in lines if words[0] == "file"} == set(content(model))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--to=grounded"], "--to: expected OWNER/NAME"),
        (["--to=a/b/c"], "--to: expected OWNER/NAME"),
        (["--to=ada/../x"], "--to: expected OWNER/NAME"),
        (["--to=ada/white space"], "--to: expected OWNER/NAME"),
        (["--stream=visual"], "--stream: expected one of language, language-grounded"),
        (["--message= "], "--message: expected a text"),
        (["--checkpoint=/no/such/model"], "give a finished run's model/ folder"),
    ],
)
def test_options_that_cannot_be_used_give_status_2_before_the_hub_is_asked(
    hub: Hub, model: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(model, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert named in said
    assert said.count("\n") == 1
    assert hub.asked == []


def test_a_damaged_model_is_not_pushed(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    weights = copied / "language" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for words in ((), ("--stream=language",)):
        assert pushed(copied, *words) == 2
        assert f"{weights} is damaged" in capsys.readouterr().err
    assert hub.asked == []
    assert pushed(copied, "--stream=language-grounded") == 0  # which is whole


def test_of_a_model_without_seals_none_are_claimed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Folder.at(shutil.copytree(model, tmp_path / "model"))
    assert pushed(copied, "--dry-run") == 0
    assert "equal to their seals" in capsys.readouterr().out
    content = copied.read_sealed(export.ABOUT)
    del content["files"]
    copied.write_json(export.ABOUT, content)  # as earlier versions wrote it
    assert pushed(copied, "--dry-run") == 0
    assert "equal to their seals" not in capsys.readouterr().out


def test_a_card_that_the_hub_would_refuse_is_named(
    hub: Hub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    for text, status, named in (
        ("---\ntags: [a\n---\n", 2, f"{copied}/README.md"),
        ("---\n- a\n---\n", 2, f"{copied}/README.md"),
        ("---\nmodel-index: 3\n---\n", 2, f"{copied}/README.md"),
        ("---\ntags: groundray\n---\n", 1, '"tags" must be a list'),  # the hub's own rule
    ):
        (copied / "README.md").write_text(text)
        assert pushed(copied) == status
        said = capsys.readouterr().err
        assert named in said
        assert said.count("\n") == 1
    assert hub.uploads() == []


@pytest.mark.parametrize(
    ("token", "to", "named"),
    [
        (None, NAME, "hf auth login"),
        (STALE_TOKEN, NAME, "does not accept the token"),
        (READ_TOKEN, NAME, "may not write"),
        (TOKEN, "else/grounded", "may not write"),
        (TOKEN, f"{OWNER}/gated", "is gated"),
        (TOKEN, f"{OWNER}/bert", "holds another model"),
        (TOKEN, f"{OWNER}/damaged", "damaged/groundray.json cannot be read"),
        (TOKEN, f"{OWNER}/list", "list/groundray.json cannot be read"),
    ],
)
def test_what_the_hub_refuses_gives_status_1_and_no_token(
    hub: Hub,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    to: str,
    named: str,
) -> None:
    """The stand-in's errors repeat the token."""
    hub.use(monkeypatch, token)
    hub.make(f"{OWNER}/gated", gated=True)
    hub.make(f"{OWNER}/bert", {"config.json": b"{}", "model.safetensors": b"", "vocab.txt": b""})
    hub.make(f"{OWNER}/damaged", {"groundray.json": b"{"})
    hub.make(f"{OWNER}/list", {"groundray.json": b"[]"})
    assert pushed(model, to=to) == 1
    said = capsys.readouterr()
    assert named in said.err
    assert said.err.count("\n") == 1
    assert token is None or token not in said.out + said.err
    assert hub.uploads() == []


def test_the_token_of_a_login_is_used_and_not_shown(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.use(monkeypatch, token=None)
    for token, status in ((READ_TOKEN, 1), (TOKEN, 0)):
        (tmp_path / "login").write_text(token)
        assert pushed(model, "--stream=language") == status
        said = capsys.readouterr()
        assert token not in said.out + said.err
        assert ("***" in said.err) == (status == 1)  # where the stand-in repeats it
        assert hub.sent["POST", "/api/repos/create"] == f"Bearer {token}"


@pytest.mark.parametrize("path", ["/commit/", "/objects/batch"])
def test_a_push_that_fails_commits_nothing_and_is_resumed(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    hub.failing = {path: 507}
    assert pushed(model) == 1
    said = capsys.readouterr().err
    assert "507" in said
    assert TOKEN not in said
    assert in_hub(hub) == {}
    sent = len(hub.uploads())
    assert (sent > 0) == (path == "/commit/")
    hub.failing = {}
    assert pushed(model) == 0
    assert in_hub(hub) == content(model)
    assert sent == 0 or len(hub.uploads()) == sent  # what was sent is not sent again


def test_a_push_at_the_same_time_is_an_error(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = hub.batch

    def while_another_commits(token: str, **asked: object) -> object:
        hub.repositories[NAME].commit("main", {".gitattributes": b""}, "another's")
        return batch(token=token, **asked)

    monkeypatch.setattr(hub, "batch", while_another_commits)
    assert pushed(model) == 1
    assert "changed during the push" in capsys.readouterr().err
    assert hub.repositories[NAME].messages[-1] == "another's"


def test_a_hub_without_xet_storage_is_named(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hf_xet", reason="the hub's client is installed without Xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert pushed(model, "--stream=language") == 1
    said = capsys.readouterr().err
    assert "HF_HUB_DISABLE_XET=1" in said
    assert TOKEN not in said
    assert in_hub(hub) == {}


def test_without_a_network_a_push_fails_at_once(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
        assert pushed(model) == 1
    assert f"cannot reach the hub at {nowhere}" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pushed(model) == 1
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err
    assert hub.asked == []
