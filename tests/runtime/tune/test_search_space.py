"""Valid and invalid values of `--space`."""

from __future__ import annotations

import pytest

from groundray import config
from groundray.config import SettingsError
from groundray.runtime.tune.search_space import Space, parse_spaces


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("grounding.temperature=choice:0.03,0.1,1", "choice", (0.03, 0.1, 1)),
        ("grounding.temperature=loguniform:1e-2:0.5", "loguniform", (0.01, 0.5)),
        ("grounding.dropout=uniform:0:0.5", "uniform", (0.0, 0.5)),
        ("grounding.similarity=choice:dot,cosine", "choice", ("dot", "cosine")),
        ("grounding.trains.language_layers=choice:1,2,all", "choice", (1, 2, "all")),
        ("grounding.trains.trunk=choice:true,false", "choice", (True, False)),
    ],
)
def test_a_space_is_read_and_written(text: str, kind: str, values: tuple[object, ...]) -> None:
    space = Space.parse(text)
    assert (space.kind, space.values) == (kind, values)
    assert Space.parse(str(space)) == space
    space.check(config.load("demo"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grounding.temperature", "expected SETTING=choice:A,B,..."),
        ("grounding.temperature=0.1", "expected SETTING=choice:A,B,..."),
        ("grounding.temperature=logunifrom:0.1:1", "did you mean 'loguniform'?"),
        ("grounding.temperature=choice:", "expected at least one value, got none"),
        ("grounding.temperature=choice:0.1,0.1", "expected each value once"),
        ("grounding.temperature=uniform:0.1", "expected two numbers, uniform:LOW:HIGH"),
        ("grounding.temperature=uniform:low:high", "expected two numbers, uniform:LOW:HIGH"),
        ("grounding.temperature=uniform:0.1:.inf", "expected two numbers, uniform:LOW:HIGH"),
        ("grounding.temperature=uniform:1:0.1", "expected LOW below HIGH"),
        ("grounding.temperature=uniform:1:1", "expected LOW below HIGH"),
        ("grounding.dropout=loguniform:0:0.5", "expected a range above 0"),
        ("grounding.temperature=uniform:-1:1", "grounding.temperature: Input should be greater than 0"),
        ("grounding.similarity=choice:dot,cos", "Input should be 'dot' or 'cosine', got 'cos'"),
        ("grounding.temprature=choice:0.1", "did you mean 'grounding.temperature'?"),
        ("run.seed=choice:0,1", "the same in all trials; give --run.seed instead"),
        ("scaling.num_workers=choice:1,2", "the same in all trials"),
    ],
)
def test_invalid_search_space_is_refused_with_the_repair(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_spaces([text], config.load("demo"))
    assert said in str(error.value)


def test_a_setting_is_swept_once() -> None:
    with pytest.raises(SettingsError, match="expected each setting once"):
        parse_spaces(["grounding.temperature=choice:0.1", "grounding.temperature=uniform:0.1:1"], config.load("demo"))


@pytest.mark.parametrize(
    ("text", "log"),
    [
        ("a=choice:0.03,0.1,0.3,1", True),
        ("a=choice:1,2,3", False),
        ("a=loguniform:1:2", True),
        ("a=uniform:0:9", False),
    ],
)
def test_ratios_are_drawn_on_a_log_scale(text: str, log: bool) -> None:
    assert Space.parse(text).on_log_scale == log
