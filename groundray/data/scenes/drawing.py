"""Images of scenes, drawn with PIL at twice their size and scaled down, on a background without information."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from groundray.data.scenes.scene import SIZE, Dice, Object, Scene
from groundray.data.scenes.vocabulary import COLOURS
from groundray.rng import hash64

SCALE = 2
QUALITY = 92


def jpeg(scene: Scene) -> bytes:
    """Return the scene's image as a JPEG file of SIZE x SIZE pixels."""
    dice = Dice(scene.key, 2)
    image = _background(scene.key, dice)
    for item in scene.objects:
        _draw(image, item, dice)
    out = io.BytesIO()
    image.resize((SIZE, SIZE), Image.Resampling.BOX).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _background(key: int, dice: Dice) -> Image.Image:
    """Return a grey to beige background with a gradient, a few soft blots and some grain."""
    side = SIZE * SCALE
    base = np.array([dice.between(150, 225)] * 3) + np.array([dice.between(-8, 8) for _ in range(3)])
    slope = np.linspace(-dice.between(0, 18), dice.between(0, 18), side)
    slope = slope[:, None] if dice.chance(0.5) else slope[None, :]
    coarse = (hash64(key, 3, np.arange(64, dtype=np.uint64)) % np.uint64(25)).astype(np.float32).reshape(8, 8) - 12
    blots = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    grain = (hash64(key, 4, np.arange(SIZE * SIZE, dtype=np.uint64)) % np.uint64(13)).astype(np.float32) - 6
    grain = grain.reshape(SIZE, SIZE).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    light = slope + blots + grain
    channels = [Image.fromarray((part + light).clip(0, 255).astype(np.uint8)) for part in base.tolist()]
    return Image.merge("RGB", channels)


def _draw(image: Image.Image, item: Object, dice: Dice) -> None:
    extent = item.extent * SCALE
    shape = Image.new("L", (extent, extent))
    _outline(ImageDraw.Draw(shape), item.shape, extent)
    glow = dice.between(-14, 14)
    colour = tuple(max(0, min(255, part + glow)) for part in COLOURS[item.colour])
    paint = Image.new("RGB", (extent, extent), colour)
    if item.texture != "plain":
        marks = Image.new("L", (extent, extent))
        _texture(ImageDraw.Draw(marks), item.texture, extent, dice)
        paint.paste(_contrast(colour), (0, 0), marks)
    rim = shape.filter(ImageFilter.MinFilter(3))
    corner = (item.x * SCALE, item.y * SCALE)
    dark = tuple(part // 3 for part in colour)
    image.paste(Image.new("RGB", (extent, extent), dark), corner, shape)
    image.paste(paint, corner, rim)


def _contrast(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Return near-black for light colours, near-white for dark ones."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 120
    return (25, 25, 25) if light else (245, 245, 245)


def _texture(draw: ImageDraw.ImageDraw, texture: str, extent: int, dice: Dice) -> None:
    """Draw marks of the same width on small and big objects, so that texture and size are independent."""
    if texture == "striped":
        period, start = 10 * SCALE, dice.below(10 * SCALE)
        for x in range(start - extent - period, extent, period):
            draw.line([(x, extent), (x + extent, 0)], fill=255, width=3 * SCALE + 1)
    else:
        period, radius = 8 * SCALE, 2.2 * SCALE
        start = dice.below(period // 2)
        for row, y in enumerate(range(start, extent + period, period)):
            for x in range(start - (row % 2) * period // 2, extent + period, period):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)


def _outline(draw: ImageDraw.ImageDraw, shape: str, extent: int) -> None:
    """Fill the area of a shape with 255 in a square of this extent."""
    end = extent - 1
    polygons: dict[str, list[tuple[float, float]]] = {
        "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
        "triangle": [(0.5, 0.0), (1.0, 0.95), (0.0, 0.95)],
        "diamond": [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)],
        "hexagon": [(0.25, 0.06), (0.75, 0.06), (1.0, 0.5), (0.75, 0.94), (0.25, 0.94), (0.0, 0.5)],
        "cross": [
            (0.33, 0.0),
            (0.67, 0.0),
            (0.67, 0.33),
            (1.0, 0.33),
            (1.0, 0.67),
            (0.67, 0.67),
            (0.67, 1.0),
            (0.33, 1.0),
            (0.33, 0.67),
            (0.0, 0.67),
            (0.0, 0.33),
            (0.33, 0.33),
        ],
        "arrow": [(0.0, 0.32), (0.5, 0.32), (0.5, 0.05), (1.0, 0.5), (0.5, 0.95), (0.5, 0.68), (0.0, 0.68)],
        "house": [(0.5, 0.0), (1.0, 0.45), (0.85, 0.45), (0.85, 1.0), (0.15, 1.0), (0.15, 0.45), (0.0, 0.45)],
        "star": [
            (0.5 + radius * math.sin(point * math.pi / 5), 0.52 - radius * math.cos(point * math.pi / 5))
            for point in range(10)
            for radius in [0.2 if point % 2 else 0.52]
        ],
    }
    if shape in polygons:
        draw.polygon([(x * end, y * end) for x, y in polygons[shape]], fill=255)
    elif shape == "heart":
        curve = []
        for degree in range(0, 360, 6):
            t = math.radians(degree)
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            curve.append(((x + 16.5) / 33 * end, (12.5 - y) / 30 * end))
        draw.polygon(curve, fill=255)
    else:  # circle, ring and moon are parts of a disc
        draw.ellipse([0, 0, end, end], fill=255)
        if shape == "ring":
            draw.ellipse([0.27 * end, 0.27 * end, 0.73 * end, 0.73 * end], fill=0)
        elif shape == "moon":
            draw.ellipse([0.38 * end, -0.02 * end, 1.22 * end, 0.82 * end], fill=0)
