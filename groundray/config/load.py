"""Loads settings: a preset or a YAML file, overridden by `--dotted.field VALUE` arguments.

pydantic-settings makes the arguments from the schema, parses them, and puts their values over those of the file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource
from pydantic_settings import SettingsError as ArgumentError

from groundray.config.settings import SECRET, Settings, SettingsError, flatten
from groundray.config.yaml_text import check_json_keys, parse_yaml
from groundray.storage.seals import HEADER, open_text


def presets() -> dict[str, Path]:
    """Return the presets in this package: name and file."""
    folder = Path(str(resources.files("groundray.config") / "presets"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load(config: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Load the settings of a preset or YAML file.

    Args:
        overrides: command-line arguments that replace single settings, such as `--grounding.epochs 3`.

    Raises:
        SettingsError: the file, a name or a value cannot be used; the message names it and gives a repair.
    """
    path = find(config)
    return _build(_read_yaml(path), overrides, f"settings of {path}")


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return the settings with some values replaced, by dotted name.

    Raises:
        SettingsError: a name or a value cannot be used; the message names it and gives a repair.
    """
    overrides = [f"--{name}={_to_cli_value(value)}" for name, value in values.items()]
    return _build(settings.model_dump(), overrides, ", ".join(f"{name} {value}" for name, value in values.items()))


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a line for each name whose values differ."""
    return [
        f"  {name}: {stored.get(name)!r} stored, {current.get(name)!r} now"
        for name in {**current, **stored}
        if stored.get(name) != current.get(name)
    ]


def to_cli_args(settings: Settings, base: Settings) -> list[str]:
    """Return the command-line arguments that turn the base settings into these."""
    old, new = (dict(flatten(each.model_dump(mode="json"))) for each in (base, settings))
    return [
        word
        for name, value in new.items()
        if old.get(name, ...) != value
        for word in (f"--{name}", _to_cli_value(value))
    ]


def _to_cli_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_to_cli_value, value)) or "[]"
    return value if isinstance(value, str) else json.dumps(value)


def find(config: str | Path) -> Path:
    """Return the file of a preset, or the YAML file itself.

    Raises:
        SettingsError: there is no such preset or file; the message lists the presets.
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


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting and section as (dotted name, field), in the schema's order."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if section := section_of(field):
            yield from fields(section, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of a field that is a section, None for a setting."""
    for option in (field.annotation, *get_args(field.annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def add_arguments(
    parser: argparse.ArgumentParser, model: type[BaseSettings] = Settings, choices: bool = False
) -> CliSettingsSource[Any]:
    """Add an argument for every setting, in a group for each section, and return the source that reads their values.

    Args:
        choices: let argparse know the possible values, for shell completion. Otherwise only the schema checks them.
    """

    def add(group: Any, *flags: str, **kwargs: Any) -> Any:
        kwargs["help"] = kwargs["help"].replace("(default: None)", "(default: null)")  # as it is typed
        if choices:
            kwargs["choices"] = _choices(kwargs["metavar"])
        return group.add_argument(*flags, **kwargs)

    return CliSettingsSource(
        model, root_parser=parser, add_argument_method=add, cli_hide_none_type=True, cli_use_class_docs_for_groups=True
    )


def _choices(metavar: str) -> tuple[str, ...] | None:
    if metavar == "bool":
        return "true", "false"
    return tuple(metavar[1:-1].split(",")) if re.fullmatch(r"\{[\w-]+(,[\w-]+)*\}", metavar) else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, or an empty string where no option is close."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an error of one line, where argparse would print the usage with 180 arguments and exit."""
        raise SettingsError(message)


def _build(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> Settings:
    parser = _Parser(add_help=False, allow_abbrev=False)
    source = add_arguments(parser)
    arguments, unknown = parser.parse_known_args(overrides)
    if unknown:
        raise SettingsError(_explain_unknown(unknown[0]))
    for word in overrides:  # pydantic-settings takes a section as JSON: `--NAME JSON` or `--NAME=JSON`
        check_json_keys(word.partition("=")[2] if word.startswith("--") else word, "a section on the command line")
    try:
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source, **tree)
    except ArgumentError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(_explain(error, origin)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if content.startswith(HEADER.encode()):  # of a run
        try:
            open_text(content)
        except ValueError:
            raise SettingsError(
                f"{path}: its content differs from its checksum in the first line: restore it, or delete that line if "
                "you edited the file"
            ) from None
    tree = parse_yaml(content, str(path))  # of bytes, a byte order mark says the encoding
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected sections such as `run:` and `stages:`, got {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str) or key.startswith("_"):
            raise SettingsError(
                f"{path}: expected names of sections, got {key!r}; valid: {', '.join(Settings.model_fields)}"
            )
    return tree


def _explain_unknown(word: str) -> str:
    if not word.startswith("--"):
        return f"expected --dotted.field VALUE, got {word!r} on its own"
    known = [name for name, _ in fields()]
    name = word.removeprefix("--").partition("=")[0]
    section = name.rpartition(".")[0]
    siblings = sorted(other for other in known if other.rpartition(".")[0] == section)
    valid = f"; valid here: {', '.join(siblings)}" if siblings else f"; sections: {', '.join(Settings.model_fields)}"
    return f"unknown setting --{name}{did_you_mean(name, known)}{valid}"


def _explain(error: ValidationError, origin: str) -> str:
    if secrets := [problem["msg"] for problem in error.errors() if problem["type"] == SECRET]:
        return secrets[0]
    lines = [f"{origin} cannot be used:"]
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        dotted = ".".join(path)
        if problem["type"] == "extra_forbidden":
            section: type[BaseModel] = Settings
            for part in path[:-1]:
                section = section_of(section.model_fields[part]) or section
            valid = list(section.model_fields)
            where = f" in section {'.'.join(path[:-1])!r}" if path[:-1] else ""
            lines.append(
                f"  {dotted}: unknown key{where}{did_you_mean(path[-1], valid)}; valid here: {', '.join(valid)}"
            )
        elif problem["type"] == "missing":
            lines.append(f"  {dotted}: expected a value, got none")
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {dotted + ': ' if dotted else ''}{message}")
        else:
            options = re.findall(r"'([^']+)'", problem["msg"]) if problem["type"] == "literal_error" else ()
            near = did_you_mean(str(problem["input"]), options)
            lines.append(f"  {dotted}: {problem['msg']}, got {problem['input']!r}{near}")
    return "\n".join(lines)
