"""The search space of a sweep: the values of each swept setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from groundray.config import Settings, SettingsError, changed, did_you_mean, parse_yaml

Kind = Literal["choice", "uniform", "loguniform"]
FORMS = "choice:A,B,... or uniform:LOW:HIGH or loguniform:LOW:HIGH"
# settings that the sweep gives each trial, or that no result depends on
NOT_SWEPT = ("run.", "stages", "scaling.", "checkpoints.", "tracking.", "features.", "data.prefetch", "data.processes")


@dataclass(frozen=True)
class Space:
    """A setting and its values: one of `values` (`choice`), or any number in the range of the two (other kinds)."""

    name: str
    kind: Kind
    values: tuple[Any, ...]

    @staticmethod
    def parse(text: str) -> Space:
        """Parse `SETTING=choice:A,B`, `SETTING=uniform:LOW:HIGH` or `SETTING=loguniform:LOW:HIGH`.

        Raises:
            SettingsError: the text has another form, or a range is empty or reversed.
        """
        name, equals, form = text.partition("=")
        kind, colon, rest = form.partition(":")
        if not (name and equals and colon) or kind not in get_args(Kind):
            hint = did_you_mean(kind, get_args(Kind)) if colon else ""
            raise SettingsError(f"--space: expected SETTING={FORMS}, got {text!r}{hint}")
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
                raise SettingsError(f"--space {text}: expected LOW below HIGH, got {values[0]:g} and {values[1]:g}")
            if kind == "loguniform" and values[0] <= 0:
                raise SettingsError(f"--space {text}: expected a range above 0 for its logarithm")
        return Space(name, cast(Kind, kind), values)

    def __str__(self) -> str:
        between = "," if self.kind == "choice" else ":"
        return f"{self.name}={self.kind}:{between.join(map(format_value, self.values))}"

    @property
    def on_log_scale(self) -> bool:
        """True if the values are compared by ratio: `loguniform`, and numbers that span at least a factor of 8."""
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)
        return self.kind == "loguniform" or (
            numbers and min(self.values) > 0 and max(self.values) >= 8 * min(self.values)
        )

    def check(self, settings: Settings) -> None:
        """Raise SettingsError if the setting does not exist, cannot be swept, or does not accept a value."""
        if self.name.startswith(NOT_SWEPT):
            raise SettingsError(f"--space {self}: {self.name} is the same in all trials; give --{self.name} instead")
        for value in self.values:
            changed(settings, {self.name: value})


def parse_spaces(texts: Sequence[str], settings: Settings) -> tuple[Space, ...]:
    """Parse and check the values of `--space`.

    Raises:
        SettingsError: a text, setting or value is invalid, or a setting is given twice.
    """
    parsed = tuple(Space.parse(text) for text in texts)
    for number, space in enumerate(parsed):
        space.check(settings)
        if space.name in {earlier.name for earlier in parsed[:number]}:
            raise SettingsError(f"--space {space}: expected each setting once")
    return parsed


def format_value(value: Any) -> str:
    """Format a swept value: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(text: str, space: str) -> Any:
    """Parse a value as YAML, and 1e-3 as a number too."""
    value = parse_yaml(text, f"--space {space}: {text!r}")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
