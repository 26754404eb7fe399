"""Compiled parts compute what the others do, keep the names of their weights, and need a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SmallWorld
from torch import Tensor

from groundray import config
from groundray.model.build import build_model
from groundray.model.grounded import GroundedModel
from groundray.training import preflight
from groundray.training.compilation import compile_parts
from groundray.training.gradient_checkpointing import checkpoint_gradients

pytestmark = pytest.mark.thorough  # compiles


def gradients(model: GroundedModel, image_size: int) -> dict[str, Tensor]:
    """Return the gradients of two chunks with dropout, of other sizes."""
    model.zero_grad()
    for samples, width in ((4, 9), (6, 11)):
        torch.manual_seed(samples)
        mask = torch.arange(width) < (torch.arange(samples) % (width - 2) + 3)[:, None]
        tokens = torch.randint(5, 50, (samples, width))
        images = torch.randint(0, 255, (samples, 3, image_size, image_size), dtype=torch.uint8)
        W, V = model.language(tokens, mask)[mask], model.visual(images)
        (W[:, 0].sum() + W.square().sum() + V[..., 1].sum() + V.square().sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # the compiler looks at `.grad` of tensors that have none, and hides the warning
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_parts_have_the_gradients_and_names_of_the_others(world: SmallWorld, checkpointed: bool) -> None:
    settings = config.load("demo", world.settings()).model
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(settings)
    names, expected = list(model.state_dict()), gradients(model, settings.image_size)
    compile_parts(model)
    if checkpointed:
        checkpoint_gradients(model)
    found = gradients(model, settings.image_size)
    assert list(model.state_dict()) == names
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * scale), name


def test_without_a_compiler_a_compiled_run_is_refused(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    words = world.settings(f"--run.storage={tmp_path}")
    preflight.check(config.load("demo", words))
    with pytest.raises(config.SettingsError, match=r"scaling\.compile: expected a C\+\+ compiler"):
        preflight.check(config.load("demo", [*words, "--scaling.compile=true"]))


def test_only_a_compiled_run_has_another_identity(world: SmallWorld) -> None:
    plain, compiled = (config.load("demo", world.settings(f"--scaling.compile={value}")) for value in ("false", "true"))
    (line,) = config.differences(plain.identity(), compiled.identity())
    assert line == "  scaling.compile: None stored, True now"  # runs of earlier versions have no such setting
