"""mkdocs hook: shows demo.ipynb, with the outputs that it was saved with, as the page demo.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

NOTEBOOK = Path(__file__).parents[1] / "demo.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(NOTEBOOK))
    files.append(File.generated(config, "demo.md", content=text))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, name, content=content))
    return files
