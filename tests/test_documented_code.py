"""The code of README, quickstart and notebook runs as it is written, on a small world and with one epoch a stage."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRAIN = re.compile(r"^python -m groundray\.train(.*)$", re.MULTILINE)

# the demo's preset as a run of seconds, without Ray: what the pages call stays as they have it
SMALL = """
import sys
import yaml
from pathlib import Path
import groundray.config
from groundray.data.sources.scenes import Scenes

Scenes._size = property(lambda self: {"num_scenes": 160, "num_val": 40, "seed": 0, "objects_per_noun": 4})
load = sys.modules["groundray.config.load"]  # the module: the package's `load` is its function
found = load.find


def small(config):
    if str(config) != "demo":
        return found(config)
    preset = yaml.safe_load(found("demo").read_text())
    for stage in preset["stages"]:
        preset[stage]["epochs"] = 1
        preset[stage]["optimizer"].pop("warmup", None)
    preset |= {"scaling": {"num_workers": 0, "chunks": 2, "threads": 1}, "tracking": {"enabled": False}}
    preset["analysis"]["enabled"] = False
    Path("demo.yaml").write_text(yaml.safe_dump(preset))
    return Path("demo.yaml")


load.find = small
"""


def code_of(page: Path, *languages: str) -> str:
    """Return the blocks of a page as Python, one after the other; of shell blocks the runs alone."""
    parts = []
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python" and language in languages:
            parts.append(block)
        elif language in languages:
            joined = block.replace("\\\n", " ")
            parts += [f"assert train.main({shlex.split(words, comments=True)}) == 0" for words in TRAIN.findall(joined)]
    return "\n".join(parts)


def run(code: str, folder: Path) -> str:
    """Run code in a folder as a script, and return what it printed."""
    script = folder / "script.py"
    script.write_text(code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.mark.thorough
@pytest.mark.timeout(900)  # on a busy machine
def test_quickstart_and_readme_run_in_an_empty_folder(tmp_path: Path) -> None:
    """`make demo` trains with `python -m groundray.train`, and the pages go on with what it has made."""
    quickstart = code_of(ROOT / "docs" / "quickstart.md", "python", "sh")
    readme = code_of(ROOT / "README.md", "python")
    assert quickstart.count("train.main") == 3
    assert "AutoModel.from_pretrained" in quickstart
    assert "open_search" in readme
    checked = (
        "assert tokenizer.mask_token\nassert model.config.hidden_size == 128\n",
        "assert set(result['stages']) == {'visual', 'language', 'grounding', 'relational', 'retrieval'}\n"
        "assert vectors.shape == (2, 128)\nassert len(hits) == 5\n"
        "assert set(numbers['analyses']) == {'axes', 'composition'}\n",
    )
    start = f"{SMALL}\nfrom groundray import train\nassert train.main([]) == 0\n"
    printed = run("\n".join([start, quickstart, checked[0], readme, checked[1]]), tmp_path)
    assert printed.count("drawing the embedded world") == 1
    assert (tmp_path / "runs" / "demo" / "model" / "language-grounded").is_dir()
    assert (tmp_path / "runs" / "colder" / "result.json").exists()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "demo.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code, worlds = re.subn(r"--num-scenes 2000 --num-val 200", "--num-scenes 200 --num-val 40", code)
    code, epochs = re.subn(r"^epochs = \{.*\}$", lambda line: re.sub(r"\d+", "1", line[0]), code, flags=re.MULTILINE)
    assert (worlds, epochs) == (1, 1)
    printed = run(code, tmp_path)
    assert [line for line in printed.splitlines() if line.endswith("is done")] == [
        f"{stage} is done" for stage in ("visual", "language", "grounding", "relational", "retrieval")
    ]
    for name in (
        "text_to_image/recall@10",
        "predicate/top1",
        "ungrounded",
        "text-only",
        "grounded",
        "axes",
        "composition",
    ):
        assert re.search(rf"^ *{re.escape(name)}\b", printed, re.MULTILINE), name
