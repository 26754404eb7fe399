"""The mailbox between workers and the driver."""

from __future__ import annotations

from groundray.runtime.train import ray_worker
from groundray.training.events import StepDone


def test_a_step_that_is_done_again_is_no_progress() -> None:
    mailbox = ray_worker.Mailbox.__ray_metadata__.modified_class()
    for step in (*range(1, 51), *range(31, 51)):
        mailbox.put([StepDone("grounding", 0, step, 100, {})])
    assert mailbox.steps_done() == 50
    mailbox.put([StepDone("language", 0, 3, 100, {})])
    assert mailbox.steps_done() == 53


def test_the_end_of_a_run_outweighs_what_else_is_wanted() -> None:
    mailbox = ray_worker.Mailbox.__ray_metadata__.modified_class()
    mailbox.request_stop("resized")
    assert mailbox.put([]) == "resized"
    assert mailbox.clear_request() == ""
    mailbox.request_stop("stopped")
    mailbox.request_stop("resized")
    assert mailbox.clear_request() == "stopped"
    assert mailbox.put([]) == "stopped"
