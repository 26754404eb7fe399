"""The values that a setting takes in a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import yaml

from groundray.config import Settings, SettingsError, changed, did_you_mean

Kind = Literal["choice", "uniform", "loguniform"]
FORMS = "choice:A,B,... or uniform:LOW:HIGH or loguniform:LOW:HIGH"
# what a sweep gives each trial itself, and what no result depends on
FIXED = ("run.", "stages", "scaling.", "checkpoints.", "tracking.", "features.", "data.prefetch")


@dataclass(frozen=True)
class Space:
    """A setting and what it may be: one of `values`, or anything between their first and their last."""

    name: str
    kind: Kind
    values: tuple[Any, ...]

    @staticmethod
    def parse(text: str) -> Space:
        """The space that `SETTING=choice:A,B` or `SETTING=uniform:LOW:HIGH` (or `loguniform`) means.

        Raises:
            SettingsError: the text is not of that form, or a range is empty or reversed.
        """
        name, equals, form = text.partition("=")
        kind, colon, rest = form.partition(":")
        if not (name and equals and colon) or kind not in get_args(Kind):
            wrong = did_you_mean(kind, get_args(Kind)) if colon else ""
            raise SettingsError(f"--space: expected SETTING={FORMS}, got {text!r}{wrong}")
        if kind == "choice":
            values = tuple(_value(part, text) for part in rest.split(",") if part.strip())
            if not values:
                raise SettingsError(f"--space {text}: expected at least one value, got none")
            if len(set(map(repr, values))) != len(values):
                raise SettingsError(f"--space {text}: expected each value once")
        else:
            values = tuple(_value(part, text) for part in rest.split(":"))
            if len(values) != 2 or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise SettingsError(f"--space {text}: expected two numbers, {kind}:LOW:HIGH")
            values = tuple(map(float, values))
            if values[0] >= values[1]:
                raise SettingsError(f"--space {text}: expected the lower end before the higher, {values[1]:g} above it")
            if kind == "loguniform" and values[0] <= 0:
                raise SettingsError(f"--space {text}: expected a range above 0, whose logarithm is drawn")
        return Space(name, cast(Kind, kind), values)

    def __str__(self) -> str:
        between = "," if self.kind == "choice" else ":"
        return f"{self.name}={self.kind}:{between.join(map(format_value, self.values))}"

    @property
    def on_log_scale(self) -> bool:
        """Whether its values are read by their ratios: those of `loguniform`, and numbers that span a factor of 8."""
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        return self.kind == "loguniform" or (
            numbers and min(self.values) > 0 and max(self.values) >= 8 * min(self.values)
        )

    def check(self, settings: Settings) -> None:
        """Raise SettingsError where the setting does not exist, is not a trial's to change, or cannot be so."""
        if self.name.startswith(FIXED):
            raise SettingsError(f"--space {self}: {self.name} is the same in all trials; give --{self.name} instead")
        for value in self.values:
            changed(settings, {self.name: value})


def parse_spaces(texts: Sequence[str], settings: Settings) -> tuple[Space, ...]:
    """What some `--space` words mean, each checked.

    Raises:
        SettingsError: a text, a setting or a value is unusable, or a setting is named twice.
    """
    parsed = tuple(Space.parse(text) for text in texts)
    for place, space in enumerate(parsed):
        space.check(settings)
        if space.name in {one.name for one in parsed[:place]}:
            raise SettingsError(f"--space {space}: expected each setting once")
    return parsed


def format_value(value: Any) -> str:
    """A swept value for a person: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(text: str, whole: str) -> Any:
    """A value as YAML has it, where 1e-3 is a number too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--space {whole}: {text!r} is no value: {error}") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
