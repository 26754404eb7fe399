"""`groundray train --dry-run`: the data, parameters and resources of a run, and why it could not start."""

from __future__ import annotations

from rich.console import Console

from groundray.cli import reports
from groundray.cli.command import EXIT_USAGE
from groundray.cli.embedded_world import undrawn_world
from groundray.config import Settings
from groundray.runtime.train import resources
from groundray.tracking.inquiry import Inquiry
from groundray.training.preflight import preview, without_data


def print_preview(settings: Settings, console: Console) -> int:
    """Print what a run would do, and return the exit status: 0, or 2 if the run could not start."""
    settings, undrawn, unusable = undrawn_world(settings)
    run = without_data(settings) if undrawn else preview(settings)
    required, problems = resources.preview(settings), [*run.problems, *filter(None, [unusable])]
    console.print(f"run       {run.folder}{' (resumes from its last checkpoint)' if run.resumes else ''}")
    if undrawn:
        console.print(f"data      {undrawn}; steps and parameters of the stages are known then")
    for stage in run.stages:
        console.print(f"stage     {stage.name}")
        for line in stage.data:
            console.print(f"  {line}")
        for module, count in stage.trainable.items():
            console.print(f"  trains {module}: {count:,} parameters")
        console.print(f"  trains {sum(stage.trainable.values()):,} parameters in total")
    console.print(
        f"workers   {' or '.join(map(str, settings.worker_counts))}, {settings.chunks} chunks per global batch; "
        f"CPUs: {required.workers * required.worker_cpus:g} for workers of {required.cluster_cpus:g} "
        f"({required.where}); GPUs: {required.gpus} of {required.cluster_gpus:g}"
    )
    if settings.analysis.enabled and settings.analysis.norms:
        console.print(f"analysis  with the norms of {settings.analysis.norms}, to {run.folder}/{reports.REPORT_FOLDER}")
    if not undrawn:  # the norms are part of what is drawn
        for line in reports.unread_norms(settings):
            console.print(f"  {line}")
        if unread := reports.norms_problem(settings):
            problems.append(unread)
    if run.stages and (deleted := Inquiry(settings).problem()):  # the run's folder can be read
        problems.append(deleted)
    try:
        required.check()
    except ValueError as error:
        problems.append(str(error))
    for warning in run.warnings:
        console.print(f"warning   {warning}", style="bold yellow")
    for problem in problems:
        console.print(f"problem   {problem}")
    return EXIT_USAGE if problems else 0
