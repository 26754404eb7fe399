"""Sets of steps as ranges: a million consecutive steps, or every hundredth one, take the memory of one range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class StepRanges:
    """A set of steps. Small where steps come in order and are regular, right for any."""

    def __init__(self, steps: Iterable[int] = ()):
        self._ranges: list[range] = []
        for step in steps:
            self.add(step)

    def add(self, step: int) -> None:
        if step in self:
            return
        for index in reversed(range(len(self._ranges))):
            each = self._ranges[index]
            is_last = index == len(self._ranges) - 1
            stride = each.step if len(each) > 1 else step - each[0] if is_last else 1
            if stride > 0 and step == each[-1] + stride:
                self._ranges[index] = range(each[0], step + 1, stride)
                self._join(index)
                return
        self._ranges.append(range(step, step + 1))

    def _join(self, index: int) -> None:
        """Join a range with the one that continues it, if there is one."""
        each = self._ranges[index]
        for other in self._ranges:
            if other[0] == each[-1] + each.step and (other.step == each.step or len(other) == 1):
                self._ranges[index] = range(each[0], other[-1] + 1, each.step)
                self._ranges.remove(other)
                return

    def __contains__(self, step: object) -> bool:
        return any(step in each for each in reversed(self._ranges))

    @property
    def last(self) -> int:
        """The highest step; -1 if there is none."""
        return max((each[-1] for each in self._ranges), default=-1)

    def as_json(self) -> list[list[int]]:
        """Returns start, stop and stride of each range."""
        return [[each.start, each.stop, each.step] for each in self._ranges]

    @staticmethod
    def parse(ranges: Sequence[Sequence[int]]) -> StepRanges:
        """Returns the set that `as_json` gave.

        Raises:
            ValueError, TypeError: it is another thing.
        """
        steps = StepRanges()
        steps._ranges = [range(*each) for each in ranges]
        if not all(len(each) for each in steps._ranges):
            raise ValueError("a range is empty")
        return steps
