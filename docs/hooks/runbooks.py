"""mkdocs hook: shows the runbooks that lie beside what they describe, cluster/README.md and k8s/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = ("cluster/README.md", "k8s/README.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to the other documentation, relative to the repository, are relative to docs/."""
    return markdown.replace("](../docs/", "](../") if page.file.src_uri in PAGES else markdown
