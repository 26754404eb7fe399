"""The console command: `groundray NAME` runs a command, and completes it in a shell."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from groundray import config, train
from groundray.cli.console import COMMANDS, main

PACKAGE = Path(config.__file__).parents[1]


def test_a_command_is_the_same_as_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "paper", "--run.seed", "5", "--print-config"]
    assert main(["train", *arguments]) == 0
    shown = capsys.readouterr().out
    assert train.main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert main(["train", "--config", "dmo"]) == 2


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(listed)
    assert all((PACKAGE / f"{name}.py").is_file() for name in COMMANDS)


def test_an_unknown_command_gives_status_2_and_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "'train'" in capsys.readouterr().err
    assert main([]) == 2


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from groundray.cli.console import main; main(); "
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    for arguments in ([], ["train", "--help"], ["train", "--help-all"]):
        command = [sys.executable, "-c", code, *arguments]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("[]\n")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "groundray.bash"
    with pytest.MonkeyPatch.context() as patches, file.open("w") as output:
        patches.setattr(sys, "stdout", output)
        assert main(["--print-completion", "bash"]) == 0
    return file


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("tr", {"train"}),
        ("train --grounding.tem", {"--grounding.temperature"}),
        ("train --run.on_nan ''", {"stop", "skip"}),
        ("train --scaling.use_gpu t", {"true"}),
        ("train --dry", {"--dry-run"}),
        ("sweep --retrieval.drop", {"--retrieval.dropout"}),
        ("prepare vis", {"visual-genome", "visual-genome-regions"}),
        ("analyse all --check", {"--checkpoint"}),
        ("baseline pic", {"picturebook"}),
        ("baseline bovw --weighting ''", {"ppmi", "lmi"}),
    ],
)
def test_bash_completes_commands_options_settings_and_choices(
    bash_script: Path, words: str, completions: set[str]
) -> None:
    script = f"""
source {shlex.quote(str(bash_script))}
COMP_WORDS=(groundray {words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _shtab_groundray; echo "${{COMPREPLY[@]}}"
"""
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert set(shown.split()) == completions


def test_zsh_completes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef groundray")
    assert all(f"--{name}[" in script for name, _ in config.fields())
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=script, text=True, check=True)
