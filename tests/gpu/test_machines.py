"""The command that checks a GPU: it fails where there is none, and needs few libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import machines
import pytest
import torch

BLOCKED = ("ray", "mlflow", "hypothesis", "playwright", "moto", "boto3", "cryptography", "optuna", "fastapi", "sklearn")


def test_without_a_gpu_all_tests_end_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(pytest.exit.Exception, match="expected a CUDA device, found none") as ended,
        machines.use("gpu"),
    ):
        pass
    assert ended.value.returncode == 1


def test_tests_for_a_gpu_are_collected_with_few_libraries() -> None:
    words = ["tests/gpu", "-m", "gpu", "--collect-only", "-q", "-p", "pytest_timeout"]
    program = f"import sys, pytest\nsys.modules.update(dict.fromkeys({BLOCKED}))\nsys.exit(pytest.main({words}))"
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_steps.py::test_host_waits_of_a_step[gpu]" in done.stdout
    assert "[cpu" not in done.stdout
