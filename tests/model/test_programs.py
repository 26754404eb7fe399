"""The lines of docs/guides/plain_torch.md, run where groundray cannot be imported, give groundray's numbers."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallWorld
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.tokenization import WordPieceTokenizer
from groundray.data.transforms import centre_crop
from groundray.loss.match_map import normalised, similarity
from groundray.model import export, programs
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.pretrained import load_tokenizer
from groundray.special_tokens import SpecialTokens
from groundray.stage import protocol
from groundray.stage.contrastive import Encoded, encode_for_grounding, encode_for_retrieval

pytestmark = pytest.mark.thorough  # exports programs and runs them in processes without groundray

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "plain_torch.md"
TEXTS = ["a red heart", "a blue star", "a striped square left of a large red circle"]
WORDS = {"classes": ("circle", "star"), "predicates": ("above",)}
CASES = {
    "tiny-dot": ("grounding", ("--grounding.similarity=dot",)),
    "tiny-retrieval": ("retrieval", ()),
    "vgg16-cosine": (
        "grounding",
        ("--model.trunk.name=vgg16", "--model.trunk.weights=none", "--grounding.similarity=cosine"),
    ),
    "vit-pooled": (
        "grounding",
        (
            *("--model.trunk.name=timm/vit_tiny_patch16_224", "--model.trunk.weights=none"),
            *("--grounding.alignment=pooled", "--grounding.similarity=cosine", "--grounding.special_tokens=true"),
        ),
    ),
}
# The page's code in each folder that is named, then its programs with three images, and with one text and with three
ELSEWHERE = """
import json, os, sys

HIDDEN = ("groundray", "timm", "peft")

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch

for folder in sys.argv[1:]:
    os.chdir(folder)
    names = {}
    exec(compile(open("page.py").read(), "page.py", "exec"), names)
    found = {name: names[name] for name in ("V", "W", "share", "similarity")}
    with torch.no_grad():
        pixels = names["processor"](names["Image"].open("three.png").convert("RGB"), return_tensors="pt").pixel_values
        found["three"] = names["image"](pixels.repeat(3, 1, 1, 1))
        for texts in (1, 3):
            tokens = names["tokenizer"](json.load(open("texts.json"))[-texts:], padding=True, return_tensors="pt")
            hidden = names["encoder"](**tokens).last_hidden_state
            found[f"texts {texts}"] = names["text"](hidden, tokens.attention_mask)[0]
    torch.save(found, "found.pt")
assert not any(name.partition(".")[0] in HIDDEN for name in sys.modules)
"""


@dataclass(frozen=True)
class Case:
    """An exported model in `folder/runs/demo/model`, and what the page's code found there."""

    folder: Path
    settings: config.Settings
    stage: str
    found: dict[str, Tensor]

    @property
    def model(self) -> Path:
        return self.folder / "runs" / "demo" / "model"


def write(folder: Path, settings: config.Settings, trunk: nn.Module | None = None) -> str | None:
    """Export an untrained model of the settings' last stage with its programs; return what `programs.write` does.

    Args:
        trunk: other layers in place of the trunk's.
    """
    torch.manual_seed(0)
    model = build_model(settings.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tokenizer = load_tokenizer(settings.model.language)
    writer = export.Writer(folder, settings, tokenizer, model, {})
    heads = {stage: build_head(stage, settings.model, model, WORDS) for stage in settings.stages}
    with torch.no_grad():
        for parameter in nn.ModuleDict(heads).parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for stage in settings.stages:
        names = ("relational", stage) if stage == "retrieval" else (stage,)
        model.heads = nn.ModuleDict({name: heads[name] for name in names})
        added = writer.add(stage, model.state_dict(), {"loss": 0.5}, WORDS)
    if trunk:
        model.visual.trunk.layers.forward = trunk.forward
    state = torch.random.get_rng_state()
    problem = programs.write(folder, added, settings, model.visual, SpecialTokens.of(tokenizer.backend_tokenizer))
    assert torch.equal(state, torch.random.get_rng_state())
    writer.close({})
    return problem


def page_code(stage: str) -> str:
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert code.count("stages/retrieval") == 1
    return code.replace("stages/retrieval", f"stages/{stage}")


@pytest.fixture(scope="module")
def cases(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    pytest.importorskip("timm", reason="extra `models` is not installed")
    root = tmp_path_factory.mktemp("plain")
    made: dict[str, Case] = {}
    rng = np.random.default_rng(0)
    for name, (stage, words) in CASES.items():
        stages = "grounding,relational,retrieval" if stage == "retrieval" else stage
        settings = config.load(
            "demo", world.settings("--model.image_size=32", f"--{stage}.resize=32", *words, stages=stages)
        )
        case = Case(root / name, settings, stage, {})
        case.model.mkdir(parents=True)
        assert write(case.model, settings) is None
        for file in ("heart.png", "three.png"):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(case.folder / file)
        (case.folder / "texts.json").write_text(json.dumps(TEXTS))
        (case.folder / "page.py").write_text(page_code(stage))
        made[name] = case
    folders = [str(case.folder) for case in made.values()]
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name: Case(case.folder, case.settings, case.stage, torch.load(case.folder / "found.pt"))
        for name, case in made.items()
    }


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@functools.cache
def loaded(folder: Path) -> GroundedModel:
    return export.load(folder).model


def encode(case: Case, picture: str, texts: Sequence[str]) -> Encoded:
    """Return what groundray compares: a picture for each text, and the texts; at length 1 where by cosine."""
    model, settings = loaded(case.model), case.settings
    crop = protocol.centre_crop(settings.stage(case.stage), 32, training=False)
    pixels = centre_crop((case.folder / picture).read_bytes(), crop.resize, crop.crop)
    tokenizer = WordPieceTokenizer.of(load_tokenizer(settings.model.language), 32)
    batch = CaptionBatch.of([""] * len(texts), np.stack([pixels] * len(texts)), *tokenizer.encode(texts))
    with torch.no_grad():
        if case.stage == "retrieval":
            return encode_for_retrieval(model, batch, settings.retrieval.special_tokens)
        stage: config.Grounding = settings.stage("grounding")
        found = encode_for_grounding(model, batch, stage.special_tokens, stage.alignment)
        return found._replace(V=normalised(found.V, stage.similarity), W=normalised(found.W, stage.similarity))


def test_the_page_has_ten_lines_besides_imports_and_gives_the_same_numbers(case: Case) -> None:
    lines = [line for line in page_code(case.stage).splitlines() if line and "import" not in line]
    assert len(lines) == 10
    V, W, valid, *_ = encode(case, "heart.png", TEXTS[:2])
    torch.testing.assert_close(case.found["V"], V[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(case.found["W"][valid], W[valid], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(case.found["share"], valid / valid.sum(dim=1, keepdim=True))
    expected = similarity(V[:1], W, valid)
    assert expected[0, 0] != expected[0, 1]
    torch.testing.assert_close(case.found["similarity"], expected, rtol=1e-5, atol=1e-6)


def test_one_and_three_images_and_texts_give_the_same_numbers(case: Case) -> None:
    V, W, valid, *_ = encode(case, "three.png", TEXTS)
    torch.testing.assert_close(case.found["three"], V, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(case.found["texts 3"][valid], W[valid], rtol=1e-5, atol=1e-6)
    _, W, valid, *_ = encode(case, "three.png", TEXTS[-1:])
    torch.testing.assert_close(case.found["texts 1"][valid], W[valid], rtol=1e-5, atol=1e-6)


def test_a_program_is_for_any_device_and_names_no_file_of_this_machine(case: Case) -> None:
    for name in ("image", "text"):
        file = case.model / "stages" / case.stage / f"{name}.pt2"
        nodes = list(torch.export.load(file).graph.nodes)
        given = [value for node in nodes for value in (*node.args, *node.kwargs.values())]
        assert [value for value in given if isinstance(value, torch.device)] == []
        with zipfile.ZipFile(file) as archive:
            (graph,) = (each for each in archive.namelist() if each.endswith("/models/model.json"))
            assert b".py" not in archive.read(graph)


def test_the_image_processor_cuts_as_validation_does(world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(programs.image_processor(resize=48, crop=32)))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for width, height in ((32, 32), (48, 64), (100, 60), (96, 144)):
        picture = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        picture.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
        expected = centre_crop((tmp_path / "picture.png").read_bytes(), 48, 32).astype(int)
        found = processor(Image.open(tmp_path / "picture.png"), return_tensors="pt").pixel_values[0]
        assert found.dtype == torch.uint8
        assert np.abs(found.numpy().astype(int) - expected).max() <= 2


class Undecided(nn.Module):
    """Layers that torch.export does not take: what they do depends on their input."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels if pixels.sum() > 0 else -pixels


def test_a_trunk_that_cannot_be_exported_is_named_and_leaves_a_whole_model(world: SmallWorld, tmp_path: Path) -> None:
    settings = config.load("demo", world.settings("--model.image_size=32"))
    problem = write(tmp_path, settings, Undecided())
    assert problem is not None
    assert "trunk tiny" in problem
    assert not list(tmp_path.rglob("*.pt2"))
    assert not list(tmp_path.rglob("preprocessor_config.json"))
    export.verify(tmp_path, export.about(tmp_path))


def test_a_full_disk_is_an_error_and_no_fault_of_the_trunk(world: SmallWorld, tmp_path: Path) -> None:
    programs_of = tmp_path / "stages" / "grounding"
    programs_of.mkdir(parents=True)
    (programs_of / programs.IMAGE).symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write(tmp_path, config.load("demo", world.settings("--model.image_size=32")))
