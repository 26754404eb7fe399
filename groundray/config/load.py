"""Loads settings: a preset or a YAML file, with `--dotted.field VALUE` arguments on top."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, PydanticBaseSettingsSource

from groundray.config.schema import Settings, SettingsError, flatten


def presets() -> dict[str, Path]:
    """The presets that come with groundray: name and file."""
    folder = Path(str(resources.files("groundray.config") / "presets"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(config: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a preset or YAML file, with command-line words such as `--grounding.epochs 3` on top.

    Raises:
        SettingsError: the file, a key or a value is unusable; the message names the place and the repair.
    """
    path = find(config)
    tree = _read_yaml(path)
    _check_flags(overrides)
    try:
        command_line = _parse(overrides)
        return Settings(**_merge(tree, command_line))
    except ValidationError as error:
        raise SettingsError(_explain(error, path)) from None


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The same settings with other values for some of them, by dotted name.

    Raises:
        SettingsError: a name or a value is unusable; the message names the place and the repair.
    """
    tree = settings.model_dump()
    for name, value in values.items():
        _check_flags([f"--{name}={value}"])
        nested: Any = value
        for key in reversed(name.split(".")):
            nested = {key: nested}
        tree = _merge(tree, nested)
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise SettingsError(_explain(error, ", ".join(f"{name} {value}" for name, value in values.items()))) from None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value is not the same in both."""
    return [
        f"  {name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]


def to_cli_args(settings: Settings, below: Settings) -> list[str]:
    """Command-line words that give these settings where a preset or file gives those below."""
    there, here = (dict(flatten(one.model_dump(mode="json"))) for one in (below, settings))
    return [word for name, value in here.items() if there.get(name) != value for word in (f"--{name}", _word(value))]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return value if isinstance(value, str) else json.dumps(value)


def find(config: str | Path) -> Path:
    """The file of a preset, or the YAML file itself.

    Raises:
        SettingsError: there is none of this name; the message lists the presets.
    """
    known = presets()
    if str(config) in known:
        return known[str(config)]
    path = Path(config)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise SettingsError(f"--config: there is no file {path}")
    raise SettingsError(
        f"--config: expected a preset ({', '.join(known)}) or a .yaml file, got {str(config)!r}"
        + did_you_mean(str(config), known)
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML lets what its own values are made of raise: a date in month 13, a number of 5,000 digits
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected sections such as `run:` and `stages:`, got {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str) or key.startswith("_"):
            raise SettingsError(
                f"{path}: expected names of sections, got {key!r}; valid: {', '.join(Settings.model_fields)}"
            )
    return tree


def _check_flags(words: Sequence[str]) -> None:
    """Raise where the words are not `--name value` or `--name=value` of settings that exist."""
    known = set(_dotted(Settings))
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise SettingsError(f"expected --dotted.field VALUE, got {word!r} on its own")
        if name not in known:
            parent = name.rpartition(".")[0]
            siblings = sorted(key for key in known if key.rpartition(".")[0] == parent)
            valid = f"; valid here: {', '.join(siblings)}" if parent and siblings else ""
            raise SettingsError(f"unknown setting --{name}{did_you_mean(name, known)}{valid}")
        if not equals and next(rest, "--").startswith("--"):
            raise SettingsError(f"--{name}: expected a value after it")


def _parse(words: Sequence[str]) -> dict[str, Any]:
    if not words:
        return {}
    source: PydanticBaseSettingsSource = CliSettingsSource(Settings, cli_parse_args=list(words))
    return dict(source())


def help_text() -> str:
    """Every setting with its meaning, for `--help`."""
    lines = []
    for name, field in _fields(Settings):
        if _section(field.annotation) is None:
            lines.append(f"  --{name:36} {field.description or ''}".rstrip())
    return "\n".join(lines)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _section(annotation: Any) -> type[BaseModel] | None:
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if nested := _section(field.annotation):
            yield from _fields(nested, f"{prefix}{name}.")


def _dotted(model: type[BaseModel]) -> Iterator[str]:
    return (name for name, _ in _fields(model))


def did_you_mean(word: str, options: Any) -> str:
    """` (did you mean 'x'?)`, or nothing where no option is near."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _explain(error: ValidationError, origin: Path | str) -> str:
    lines = [f"settings of {origin} cannot be used:"]
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        dotted = ".".join(place)
        if problem["type"] == "extra_forbidden":
            section = Settings
            for part in place[:-1]:
                section = _section(section.model_fields[part].annotation) or section
            valid = list(section.model_fields)
            where = f" in section {'.'.join(place[:-1])!r}" if place[:-1] else ""
            lines.append(
                f"  {dotted}: unknown key{where}{did_you_mean(place[-1], valid)}; valid here: {', '.join(valid)}"
            )
        elif problem["type"] == "missing":
            lines.append(f"  {dotted}: expected a value, got none")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {dotted + ': ' if dotted else ''}{message}")
        else:
            lines.append(f"  {dotted}: {problem['msg']}, got {problem['input']!r}")
    return "\n".join(lines)
