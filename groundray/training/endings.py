"""Errors with which a worker ends and its run resumes. The process that decides what happens next imports this file: it
needs none of the libraries that train."""

from __future__ import annotations

RESUMES = "the run resumes from its last checkpoint with scaling.accumulate: same results, a second forward pass"


class Stopped(Exception):
    """A worker has ended because it was asked to, with its checkpoint written. The argument is the reason."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


class GraphsDoNotFit(RuntimeError):
    """A GPU ran out of memory with the autograd graphs of several chunks."""
