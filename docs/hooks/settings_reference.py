"""mkdocs hook: writes reference/settings.md from the models in groundray/config/settings.py."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
PAGE = "reference/settings.md"
INTRODUCTION = """\
# Settings

For everyone who writes a configuration file or passes settings on the command line. You find every setting of a
training run here: its dotted name, type, default and meaning. The page is generated from
`groundray/config/settings.py`.

```sh
python -m groundray.train --config photos --print-config > mine.yaml    # all settings of a preset, to edit
python -m groundray.train --config mine.yaml --grounding.temperature 0.05 --dry-run
```

Settings come from a preset or a YAML file (`--config`); `--dotted.name VALUE` on the command line overrides the file.
Environment variables are not read. Settings are checked before any worker starts; an unknown name fails with the
closest valid names. A stage's section (`visual`, `language`, `grounding`, `relational`, `retrieval`) is required only
if `stages` names the stage. `required` marks settings without a default.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def descriptions() -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the description of every setting."""
    settings = _settings()
    for prefix, model in [("", settings), *_sections(settings)]:
        yield from ((name, description) for name, _, _, description in rows(model, prefix))


def page() -> str:
    """Return the page as Markdown."""
    Settings = _settings()
    parts = [INTRODUCTION, "## Top level\n", _table(Settings, "")]
    for name, model in _sections(Settings):
        parts += [f"## `{name}`\n", f"{_first_paragraph(model)}\n", _table(model, name)]
    parts.append("## Presets\n")
    for preset in sorted((ROOT / "groundray" / "config" / "presets").glob("*.yaml")):
        parts += [f"### `{preset.stem}`\n", f"```yaml\n{preset.read_text()}```\n"]
    return "\n".join(parts)


def _settings() -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # this checkout's models, whatever else is installed
    from groundray.config.settings import Settings

    return Settings


def rows(model: Any, prefix: str, section: Any = None) -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted name, type, default, description) of every setting of a section and of its own sections.

    Args:
        section: the section's default, whose values go before those of its class.
    """
    for name, field in model.model_fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        inner = _section(field.annotation)
        if inner is not None:
            if prefix:
                if default is None:
                    yield dotted, "the settings below", "none", field.description or ""
                yield from rows(inner, dotted, default)
            continue
        default = getattr(section, name, default)
        shown = "required" if field.is_required() else _shown(default)
        yield dotted, _type(field.annotation, field.metadata), shown, field.description or ""


def _sections(model: Any) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if (inner := _section(field.annotation)) is not None:
            yield name, inner


def _section(annotation: Any) -> Any | None:
    """Return the pydantic model that an annotation names, alone or as `Model | None`."""
    from pydantic import BaseModel

    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _table(model: Any, prefix: str) -> str:
    lines = ["| setting | type | default | description |", "|---|---|---|---|"]
    for name, kind, default, description in rows(model, prefix):
        cells = (f"`{name}`", kind, default if default == "required" else f"`{default}`", description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _first_paragraph(model: Any) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(annotation: Any, metadata: Any = ()) -> str:
    """Return a type in words: choices for a Literal, bounds for a constrained number."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, more)
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(annotation)).replace("\\|", "|")
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one, metadata) for one in get_args(annotation) if one is not type(None))
    if origin is tuple:
        items = [one for one in get_args(annotation) if one is not Ellipsis]
        return f"list of {_type(items[0])}" if Ellipsis in get_args(annotation) else f"[{', '.join(map(_type, items))}]"
    name = {bool: "true or false", int: "integer", float: "number", str: "text"}.get(annotation, str(annotation))
    return " ".join([name, *_bounds(metadata)]) if name in ("integer", "number") else name


def _bounds(metadata: Any) -> list[str]:
    """Return the bounds of a number, such as `> 0`."""
    found = []
    for one in metadata:
        for part in getattr(one, "metadata", [one]):
            for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
                if (bound := getattr(part, attribute, None)) is not None:
                    found.append(f"{sign} {bound:g}")
    return found
