"""Placement of labels beside points, without overlaps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

Box = tuple[float, float, float, float]  # left, bottom, right, top

ANGLES = np.radians([0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202, 68, 112, 292, 248])
DISTANCES = (1.0, 2.5, 5.0, 9.0, 14.0, 20.0)  # in gaps
NEAR = 3.0  # gaps: a label farther away gets a line to its anchor
COVERED = 1.5  # distances that a label moves outwards to cover one point fewer
MOST_COVERED = 3  # points: covering more than these is not counted


def place(
    sizes: Float[np.ndarray, "label 2"],
    anchors: Float[np.ndarray, "label 2"],
    bounds: Box,
    points: Float[np.ndarray, "point 2"],
    gap: float,
) -> list[Box | None]:
    """Return a box for each label near its anchor; None if there is no room.

    Boxes do not overlap or leave the bounds, and the line from an anchor to a label farther than NEAR crosses no other
    label. Labels are placed in order, each where it is near its anchor and covers few points.

    Args:
        points: points that should not be covered, the anchors included.
        gap: distance of a label from its anchor, and minimum distance between labels.
    """
    boxes: list[Box | None] = []
    taken, lines = np.empty((0, 4)), np.empty((0, 4))
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    for size, anchor in zip(sizes, anchors, strict=True):
        candidates = np.concatenate([_around(size, anchor, distance * gap, directions) for distance in DISTANCES])
        rings = np.repeat(np.arange(len(DISTANCES)), len(directions))
        led = np.array(DISTANCES)[rings] > NEAR
        own = np.concatenate([np.broadcast_to(anchor, (len(rings), 2)), _middles(candidates)], axis=1)
        free = _inside(candidates, bounds) & ~_overlap(candidates, taken).any(axis=1)
        free &= ~_crossed(lines, candidates).any(axis=0) & ~(led & _crossed(own, taken).any(axis=1))
        if not free.any():
            boxes.append(None)
            continue
        cost = COVERED * np.minimum(_covered(candidates, points, gap / 2), MOST_COVERED) + rings
        best = np.where(free, cost, np.inf).argmin()
        left, bottom, right, top = candidates[best]
        boxes.append((float(left), float(bottom), float(right), float(top)))
        lines = np.concatenate([lines, own[[best]][led[[best]]]])
        taken = np.concatenate([taken, [[left - gap / 2, bottom - gap / 2, right + gap / 2, top + gap / 2]]])
    return boxes


def _around(
    size: Float[np.ndarray, " side"],
    anchor: Float[np.ndarray, " side"],
    distance: float,
    directions: Float[np.ndarray, "angle 2"],
) -> Float[np.ndarray, "angle 4"]:
    """Return boxes whose edge or corner is at a distance from the anchor."""
    centres = anchor + directions * distance + np.sign(np.round(directions, 6)) * size / 2
    return np.concatenate([centres - size / 2, centres + size / 2], axis=1)


def _middles(boxes: Float[np.ndarray, "box 4"]) -> Float[np.ndarray, "box 2"]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _crossed(lines: Float[np.ndarray, "line 4"], boxes: Float[np.ndarray, "box 4"]) -> Bool[np.ndarray, "line box"]:
    """Return which lines (x, y to x, y) cross which boxes."""
    start, way = lines[:, None, :2], (lines[:, 2:] - lines[:, :2])[:, None]
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    one, other = (boxes[None, :, :2] - start) / way, (boxes[None, :, 2:] - start) / way
    enters, leaves = np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)
    return (enters < leaves) & (leaves > 0) & (enters < 1)


def _overlap(boxes: Float[np.ndarray, "box 4"], others: Float[np.ndarray, "other 4"]) -> Bool[np.ndarray, "box other"]:
    a, b = boxes[:, None], others[None]
    return np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=-1)


def _inside(boxes: Float[np.ndarray, "box 4"], bounds: Box) -> Bool[np.ndarray, " box"]:
    left, bottom, right, top = bounds
    return np.all((boxes[:, :2] >= (left, bottom)) & (boxes[:, 2:] <= (right, top)), axis=1)


def _covered(boxes: Float[np.ndarray, "box 4"], points: Float[np.ndarray, "point 2"], margin: float) -> np.ndarray:
    """Return the number of points in each box, or within the margin around it."""
    return _overlap(boxes, np.concatenate([points - margin, points + margin], axis=1)).sum(axis=1)
