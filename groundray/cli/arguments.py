"""Help on the settings of a run: one screen by default, a section or all of them on request."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pydantic import Field, create_model
from pydantic_settings import BaseSettings

from groundray import config
from groundray.config import Settings, SettingsError

# a setting's name takes most of a line: its description goes below, close to the margin
FORMATTER: Any = partial(argparse.HelpFormatter, max_help_position=8)


def add_help(parser: argparse.ArgumentParser) -> None:
    """Add `--help [SECTION]` and `--help-all` to the parser of a command that takes settings."""
    parser.add_argument(
        "-h", "--help", nargs="?", const="", metavar="SECTION", help="show this help, or a section's settings, and exit"
    )
    parser.add_argument("--help-all", action="store_true", help="show all settings and exit")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    sections = "\n".join(f"  {name:<13}{_summary(name)}" for name in Settings.model_fields)
    parser.epilog = (
        "settings, as --SECTION.NAME VALUE, override those of --config:\n"
        f"{sections}\n\n--help SECTION shows the settings of a section, such as --help grounding"
    )


def requested_help(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str | None:
    """Return the help that `--help [SECTION]` or `--help-all` asks for, None without either.

    Raises:
        SettingsError: there is no such section, or `--config` cannot be read.
    """
    if options.help_all:
        return settings_help(options.config)
    if options.help:
        return settings_help(options.config, options.help.removeprefix("--").partition(".")[0])
    return parser.format_help() if options.help is not None else None


def settings_help(preset: str, section: str | None = None) -> str:
    """Return the description, type, choices and default of every setting, or of those in one section.

    Args:
        preset: preset or file that gives the defaults.

    Raises:
        SettingsError: there is no such section, or the preset cannot be loaded.
    """
    if section is not None and section not in Settings.model_fields:
        known = list(Settings.model_fields)
        raise SettingsError(
            f"--help: expected one of {', '.join(known)}, got {section!r}{config.did_you_mean(section, known)}"
        )
    settings = config.load(preset)
    parser = argparse.ArgumentParser(
        usage="[--SECTION.NAME VALUE ...]", add_help=False, formatter_class=FORMATTER, allow_abbrev=False
    )
    config.add_arguments(parser, _with_defaults(settings, [section] if section else list(Settings.model_fields)))
    text = parser.format_help().partition("\n\n")[2]
    return f"Settings; defaults are those of --config {preset}.\n\n{text}"


def _with_defaults(settings: Settings, sections: list[str]) -> type[BaseSettings]:
    """Return a model of some sections whose defaults are the values of the settings."""
    fields: dict[str, Any] = {}
    for name in sections:
        field, value = Settings.model_fields[name], getattr(settings, name)
        kind = config.section_of(field) or field.annotation
        # a stage that the settings lack keeps the schema's defaults; Ellipsis makes it required
        fields[name] = (kind, Field(default=... if value is None else value, description=field.description))
    return create_model("Settings", __base__=BaseSettings, **fields)


def _summary(name: str) -> str:
    """Return the description of a setting, or the first sentence of that of a section."""
    field = Settings.model_fields[name]
    section = config.section_of(field)
    text = " ".join((section.__doc__ or "").split()) if section else field.description or ""
    return text.partition(". ")[0].partition(":")[0].removesuffix(".")
