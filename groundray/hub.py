"""The Hugging Face hub: pushes an exported model, or a language stream alone, to a repository in one commit.

The repository then holds exactly that model: what an earlier push wrote, and this one does not, is deleted in the same
commit. Nobody ever sees half a model. Files that the repository has already are not sent again.

The token comes from the environment (`HF_TOKEN`) or from `hf auth login`, and no output has it. `HF_ENDPOINT` names
another hub.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from groundray.credentials import HIDDEN, redacted
from groundray.model.export import ABOUT, CARD, about, is_card, verify
from groundray.storage.folder import SEALS, Folder
from groundray.versions import version_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 120.0
MAIN = "main"
STREAM = re.compile(r"language(-.+)?")  # folders of an export that hold language streams
OF_THE_HUB = re.compile(r"\.gitattributes|README\.md|LICENSE.*")  # files that the hub's website writes


class PushFailed(Exception):
    """The hub could not be reached, or refused the push; the message has the repair."""


@dataclass(frozen=True)
class Target:
    """Where a push goes.

    Attributes:
        repository: `OWNER/NAME`; made if it does not exist.
        branch: made from `main` if it does not exist.
        private: make the repository private; one that exists must be so. False: as the owner's default is.
    """

    repository: str
    branch: str = MAIN
    private: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        expected = f"--to: expected OWNER/NAME, such as my-name/my-model, got {self.repository!r}"
        if self.repository.count("/") != 1:
            raise ValueError(expected)
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise ValueError(f"{expected}: {_line(error)}") from None

    @property
    def address(self) -> str:
        """The address of its page."""
        from huggingface_hub import constants

        page = f"{constants.ENDPOINT}/{self.repository}"
        return page if self.branch == MAIN else f"{page}/tree/{self.branch}"


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        commit: the branch's newest commit.
        changed: False if the branch held exactly these files before.
        deleted: files of an earlier push that the commit deleted.
    """

    commit: str
    changed: bool
    deleted: tuple[str, ...]


def choose_files(model: Folder, stream: str | None = None, license: str | None = None) -> dict[str, Path | bytes]:
    """Return the files to push, by their names in the repository, after comparing them with their seals.

    All files of the folder are pushed but hidden ones. Cards are pushed as they are in it, whoever edited them.

    Args:
        model: local folder of an exported model.
        stream: push this language stream alone, such as `language`, as the repository's root.
        license: id of a licence for the card's metadata; None leaves the card as it is.

    Raises:
        FileNotFoundError: the folder holds no exported model.
        Damaged: a file is missing or differs from what was written; the message names it and the repair.
        ValueError: there is no such stream, or the card's metadata cannot be read.
    """
    description = about(str(model))
    streams = [name for name in model.names() if STREAM.fullmatch(name)]
    if stream is not None and stream not in streams:
        raise ValueError(f"--stream: expected one of {', '.join(streams)}, got {stream!r}")
    verify(str(model), description, (stream or "",))
    folder = model / stream if stream else model
    names = [name for name in folder.files() if not any(part.startswith(".") for part in name.split("/"))]
    files: dict[str, Path | bytes] = {name: Path(folder.locate(name)) for name in names}
    if CARD in files:
        card = _read_card(folder)
        if license is not None:
            card.data.license = license
            files[CARD] = card.content.encode()
    elif license is not None:
        raise ValueError(f"--license: expected a model card at {folder}/{CARD}, found none: write one")
    return files


def push(files: Mapping[str, Path | bytes], target: Target, message: str, report: Callable[[str], None]) -> Pushed:
    """Push files to a repository in one commit.

    Args:
        files: content or local file, by name in the repository.
        message: the commit's message.
        report: takes a line for each warning of the hub.

    Raises:
        PushFailed: there is no token, the hub cannot be reached or refused, or the repository holds something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with _failures(target) as token, _quiet(report):
        api = HfApi(token=token, library_name="groundray", library_version=version_of("groundray"))
        before = _open_repository(api, target)
        present = {sibling.rfilename for sibling in before.siblings or ()}
        deleted = _left_over(present, _pushed_before(api, target, present), files)
        operations = [
            *(CommitOperationDelete(name) for name in deleted),
            *(CommitOperationAdd(name, content) for name, content in files.items()),
        ]
        commit = api.create_commit(
            target.repository,
            operations,
            commit_message=message,
            revision=target.branch,
            parent_commit=before.sha,  # a push at the same time is an error, not a mixture
        )
    return Pushed(commit.oid, commit.oid != before.sha, deleted)


def _read_card(folder: Folder) -> Any:
    """Return the model card of a folder as the hub reads it."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        return ModelCard(folder.read_bytes(CARD).decode())
    except (YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder}/{CARD}: its metadata, between the lines ---, cannot be read ({_line(error)}): correct it"
        ) from None


def _open_repository(api: HfApi, target: Target) -> ModelInfo:
    """Make the repository and the branch if they do not exist, and return what the branch holds."""
    api.create_repo(target.repository, private=target.private or None, exist_ok=True)
    if target.branch != MAIN:
        api.create_branch(target.repository, branch=target.branch, exist_ok=True)
    info = api.model_info(target.repository, revision=target.branch)
    if target.private and not info.private:
        raise PushFailed(
            f"--private: expected a private repository, {target.repository} is public: make it private in its "
            "settings on the hub, give another name, or push without --private"
        )
    return info


def _pushed_before(api: HfApi, target: Target, present: set[str]) -> set[str]:
    """Return the files that an earlier push wrote, as their seals in the repository name them.

    Raises:
        PushFailed: the repository holds files, and none that a push wrote, or what names those is damaged.
    """
    sealed = [name for name in (ABOUT, SEALS) if name in present]
    others = sorted(name for name in present if not OF_THE_HUB.fullmatch(name))
    if others and not sealed:
        raise PushFailed(
            f"{target.repository} holds another model ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}): "
            "expected an empty repository or a model of groundray: give another name"
        )
    written = set(sealed)
    for name in sealed:
        with tempfile.TemporaryDirectory() as local:
            file = api.hf_hub_download(target.repository, name, revision=target.branch, local_dir=local)
            try:
                written |= json.loads(Path(file).read_bytes()).get("files", {}).keys()
            except (ValueError, AttributeError):
                raise PushFailed(
                    f"{target.repository}/{name} cannot be read, so that nothing tells what an earlier push wrote: "
                    "delete that repository's files on the hub, or give another name"
                ) from None
    return written


def _left_over(present: set[str], written: set[str], files: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files of an earlier push, and the cards beside them, that this one does not write."""
    old = {name for name in written & present if name not in files}
    folders = {PurePosixPath(name).parent for name in old}
    cards = {name for name in present - files.keys() if is_card(name) and PurePosixPath(name).parent in folders}
    return tuple(sorted(old | cards))


@contextlib.contextmanager
def _failures(target: Target) -> Iterator[str]:
    """Yield the token; inside, turn what goes wrong at the hub into PushFailed, without secrets."""
    import httpx2
    from huggingface_hub import get_token

    token = None
    try:
        token = get_token()
        if token is None:
            raise PushFailed(
                "expected a token of the hub, found none: run `hf auth login`, or set HF_TOKEN to a token that may "
                f"write to {target.repository}"
            )
        yield token
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        text = redacted(_explain(error, target))
        raise PushFailed(text.replace(token, HIDDEN) if token else text) from None


def _explain(error: Exception, target: Target) -> str:
    """Return what went wrong at the hub in one line, with the repair."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of a thread that uploads
        error = error.__cause__
    repository, hub = target.repository, constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub's client is offline: unset HF_HUB_OFFLINE"
    if isinstance(error, GatedRepoError):
        return f"{repository} is gated: ask for access at {target.address}, or give another name"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, _line(error.server_message or error)
        if status == 401:
            return f"{hub} does not accept the token ({said}): run `hf auth login`, or set HF_TOKEN to a valid one"
        if status == 403:
            return (
                f"the token may not write to {repository} ({said}): give a repository of yours or of your "
                "organization, and a token with write permission"
            )
        if status == 412:
            return f"{repository} changed during the push, and nothing was committed: rerun the same command"
        return f"{hub} answered {status} ({said}): rerun the same command later, which sends only what the hub lacks"
    if isinstance(error, OSError) and "xet-write-token" in str(error):
        return f"{hub} has no Xet storage ({_line(error)}): set HF_HUB_DISABLE_XET=1, which uploads by HTTP"
    if isinstance(error, httpx2.TransportError | OSError):
        return (
            f"cannot reach the hub at {hub} ({_line(error) or type(error).__name__}): check the network and its "
            "proxy, and HF_ENDPOINT if it is set"
        )
    return f"the push to {hub} failed: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _quiet(report: Callable[[str], None]) -> Iterator[None]:
    """Inside, report the hub's warnings as lines, show its progress bars on a terminal alone, and bound its waits."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    session: Any = get_session()
    former, session.timeout = session.timeout, (CONNECT_SECONDS, ANSWER_SECONDS, ANSWER_SECONDS, CONNECT_SECONDS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        session.timeout = former
        logger.setLevel(level)
        if bars:
            enable_progress_bars()
    for warning in caught:
        if warning.category is UserWarning:  # as of a card's metadata; others are of the client's own code
            report(f"note  {' '.join(str(warning.message).split())}")


def _line(error: object) -> str:
    """Return the first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def sizes(files: Mapping[str, Path | bytes]) -> Sequence[tuple[str, int]]:
    """Return the name and size in bytes of each file."""
    return [
        (name, len(content) if isinstance(content, bytes) else content.stat().st_size)
        for name, content in files.items()
    ]
