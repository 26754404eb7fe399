"""`python -m groundray.push`: upload a trained model, or one of its language streams, to the Hugging Face hub."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from groundray.cli.command import CHECKPOINT, CommandFailed, plain_console, run_command
from groundray.cli.workdir import open_paths

if TYPE_CHECKING:
    from groundray.storage.folder import Folder

INTERRUPTED = "interrupted: rerun the same command, which sends only what the hub lacks"


def main(argv: Sequence[str] | None = None) -> int:
    """Push and return the exit status: 0 pushed, 1 the hub could not be reached or refused, 2 the model or the options
    cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted=INTERRUPTED)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray push",
        description="Upload a trained model to a repository of the Hugging Face hub, in one commit. The token is the "
        "one of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=CHECKPOINT)
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository; made if it does not exist")
    parser.add_argument(
        "--stream",
        metavar="NAME",
        help="upload this language stream alone, such as language, as the repository's root, so that transformers and "
        "sentence-transformers load it by OWNER/NAME (default: the whole model)",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make the repository private; an error if it is public already (default: as the owner's new ones are)",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to upload to; made from main if it does not exist (default: main)",
    )
    parser.add_argument("--message", metavar="TEXT", help="message of the commit (default: names the model)")
    parser.add_argument(
        "--license", metavar="ID", help="licence for the card's metadata, such as apache-2.0 (default: the card's own)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the model, list what would be uploaded, and stop; asks no hub"
    )
    return parser


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    from groundray import hub  # imports torch, which --help does without
    from groundray.model import export
    from groundray.storage.folder import Folder, format_bytes
    from groundray.tracking.model_uris import locate

    target = hub.Target(options.to, options.revision or hub.MAIN, options.private)
    if options.message is not None and not options.message.strip():
        raise ValueError("--message: expected a text, got none")
    open_paths(errors.print, [options.checkpoint])
    located = locate(options.checkpoint, errors.print)
    console, checkpoint = plain_console(), Folder.at(located.place)
    with _local_export(checkpoint) as local:
        files = hub.choose_files(Folder.at(local), options.stream, options.license)
        sizes = hub.sizes(files)
        shown = checkpoint / options.stream if options.stream else checkpoint
        total = format_bytes(sum(size for _, size in sizes))
        seals = "equal to their seals" if export.about(local).files else "without seals, as of an earlier version"
        console.print(f"model  {shown}  {len(sizes)} files, {total}, {seals}")
        if options.dry_run:
            for name, size in sizes:
                console.print(f"file  {name}  {format_bytes(size)}")
            console.print(f"hub  would push to {target.address}")
            return 0
        name = located.model.uri if located.model else f"{shown.parent.name}/{shown.name}"
        message = options.message or f"Push {name}"
        try:
            pushed = hub.push(files, target, message, errors.print)
        except hub.PushFailed as error:
            raise CommandFailed(str(error)) from None
    for name in pushed.deleted:
        console.print(f"hub  deleted {name}, which the model does not have")
    console.print(f"hub  commit {pushed.commit[:12]}" if pushed.changed else "hub  holds these files already")
    console.print(f"hub  {target.address}")
    return 0


@contextlib.contextmanager
def _local_export(checkpoint: Folder) -> Iterator[Path]:
    """Yield a local folder with an export: that of a model in MLflow without what MLflow needs."""
    from groundray.tracking import mlflow_model

    with checkpoint.local_copy() as local, tempfile.TemporaryDirectory() as copies:
        if not (local / mlflow_model.ENTRY).exists():
            yield local
            return
        mlflow_model.copy_export(local, Path(copies) / "model")
        yield Path(copies) / "model"


if __name__ == "__main__":
    sys.exit(main())
