"""Generated scenes of textured shapes with exact masks: no download, training in minutes.

A scene depends only on its seed. Objects overlap; some have a thin pole. Each class has a usual hue
and texture, used three times in four, so that color and texture help but only the outline is
reliable. The background is textured, with strokes in the objects' colors. As in PASCAL VOC, a
narrow void border runs along every outline.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from fcn_jax.plugins.api import IGNORE_INDEX, Classes

SHAPES_CLASSES = Classes(
    names=("background", "disc", "square", "triangle", "star", "ring", "cross"),
    palette=(
        (0, 0, 0), (230, 60, 60), (60, 120, 230), (70, 190, 80), (240, 190, 40), (170, 80, 210),
        (40, 190, 190),
    ),
)  # fmt: skip
"""Background and the six shapes."""

EXTENT = (32, 128)
"""Smallest and largest diameter of a shape's bounding circle, in pixels."""

_HUES = (0, 5, 110, 62, 27, 145, 88)
"""Usual hue of each class, 0 to 179 as in OpenCV's HSV; the background's hue is not used."""

_USUAL = 0.75
"""Probability of a class's usual hue, and independently of its usual texture."""

_SUBPIXEL_BITS = 4


def draw_scene(seed: int, size: tuple[int, int] = (192, 192)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Args:
        seed: 0 or more; the same seed gives the same scene.
        size: height and width in pixels, 64 or more each.

    Returns:
        image u8[H,W,3] RGB; mask u8[H,W] of labels 0 to 6 and `IGNORE_INDEX` along the outlines,
        two pixels wide.
    """
    rng = np.random.default_rng(seed)
    canvas = _background(rng, size)
    labels = np.zeros(size, np.uint8)
    for _ in range(int(rng.integers(3, 7))):
        label = int(rng.integers(1, len(SHAPES_CLASSES)))
        cover, pole = _outline(rng, label, size)
        left, top, width, height = cv2.boundingRect(cv2.max(cover, pole))
        box = (slice(top, top + height), slice(left, left + width))
        body = _paint(rng, label, (height, width))
        canvas[box] = _blend(_blend(canvas[box], body * 0.55, pole[box]), body, cover[box])
        labels[(cover >= 128) | (pole >= 128)] = label
    canvas = canvas * _light(rng, size) + rng.standard_normal((*size, 3), np.float32) * 5
    image = np.clip(np.rint(cv2.GaussianBlur(canvas, (3, 3), 0.6)), 0, 255).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
    mask = np.where(edge, np.uint8(IGNORE_INDEX), labels)
    return image, mask


def _outline(
    rng: np.random.Generator, label: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The coverage of a shape and of its pole, u8[H,W] each: 255 inside, less on smoothed edges.

    The pole is empty two times in three.
    """
    low, high = EXTENT
    radius = 0.5 * rng.uniform(low, high)
    height, width = size
    center = np.array([rng.uniform(0.12, 0.88) * width, rng.uniform(0.12, 0.88) * height])
    turn = rng.uniform(0, 2 * math.pi)
    cover = np.zeros(size, np.uint8)
    shape = SHAPES_CLASSES.names[label]
    rings = [_corners(rng, shape)]
    if shape == "ring":
        rings.append(rings[0] * rng.uniform(0.45, 0.6))
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    # The outer and inner ring, filled together, leave a hole (OpenCV's even-odd rule).
    outline = [_fixed_point(ring @ rotation * radius + center) for ring in rings]
    cv2.fillPoly(cover, outline, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    pole = np.zeros(size, np.uint8)
    if rng.random() < 1 / 3:
        direction = rng.uniform(0, 2 * math.pi)
        along = np.array([math.cos(direction), math.sin(direction)])
        inside = 0.8 if len(rings) > 1 else 0.2
        start = center + along * radius * inside
        end = center + along * (radius + rng.uniform(18, 45))
        half = np.array([-along[1], along[0]]) * rng.uniform(2.5, 4)
        corners = np.stack([start + half, end + half, end - half, start - half])
        cv2.fillPoly(pole, [_fixed_point(corners)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return cover, pole


def _regular(count: int, start: float = 0.0) -> np.ndarray:
    angles = start + 2 * math.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _corners(rng: np.random.Generator, shape: str) -> np.ndarray:
    """f64[N,2], the corners of a shape in a circle of radius 1. A ring is a disc minus another."""
    if shape == "cross":
        arm = rng.uniform(0.24, 0.34)
        quarter = np.array([[0.95, -arm], [0.95, arm], [arm, arm]])
        turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
        return np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])
    if shape == "star":
        points = _regular(10)
        points[1::2] *= rng.uniform(0.4, 0.5)
        return points
    # The number of corners, the angle of the first one, and the smallest aspect ratio.
    ellipse = (48, 0.0, 0.7)
    shapes = {"square": (4, math.pi / 4, 0.5), "triangle": (3, 0.0, 0.75)}
    count, start, aspect = shapes.get(shape, ellipse)
    return np.asarray(_regular(count, start) * np.array([1.0, rng.uniform(aspect, 1.0)]))


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(points * (1 << _SUBPIXEL_BITS)), np.int32)


def _paint(rng: np.random.Generator, label: int, size: tuple[int, int]) -> np.ndarray:
    """f32[H,W,3] colors of an object, over its bounding box."""
    usual = label if rng.random() < _USUAL else int(rng.integers(1, len(SHAPES_CLASSES)))
    light = _color(_HUES[usual] + rng.normal(0, 5), rng.uniform(110, 230), rng.uniform(170, 250))
    dark = np.float32(255) - light * np.float32(0.3)
    if rng.random() < 0.7:
        dark = light * rng.uniform(0.35, 0.65)
    usual = label if rng.random() < _USUAL else int(rng.integers(1, len(SHAPES_CLASSES)))
    weight = _texture(rng, usual, size)[..., None]
    return np.asarray(light * weight + dark * (1 - weight), np.float32)


def _texture(rng: np.random.Generator, label: int, size: tuple[int, int]) -> np.ndarray:
    """f32[H,W] of 0 to 1, the lightness in the pattern of `label`, at a random scale and angle."""
    turn, step = rng.uniform(0, math.pi), rng.uniform(7, 14)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    across = (columns * math.cos(turn) + rows * math.sin(turn)) * (2 * math.pi / step)
    down = (rows * math.cos(turn) - columns * math.sin(turn)) * (2 * math.pi / step)
    patterns: tuple[Callable[[], np.ndarray], ...] = (
        lambda: np.zeros(size, np.float32),
        lambda: _noise(rng, size, 5),
        lambda: np.sin(across / 2) * np.sin(down / 2) * 3,
        lambda: np.sin(across) * 2,
        lambda: 3 * (np.cos(across) + np.cos(down)) - 2,
        lambda: np.sin(across / 2 + 1.5 * np.sin(down / 3)) * 1.2,
        lambda: 4 * np.maximum(np.cos(across), np.cos(down)) - 2.5,
    )
    return np.clip(patterns[label]() * 0.5 + 0.5, 0, 1).astype(np.float32)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """f32[H,W,3]: two muted colors, mixed by noise of three scales, and strokes of no class."""
    first = _color(rng.uniform(0, 180), rng.uniform(10, 90), rng.uniform(60, 200))
    second = _color(rng.uniform(0, 180), rng.uniform(10, 90), rng.uniform(60, 200))
    mix = 0.5 * _noise(rng, size, 60) + 0.35 * _noise(rng, size, 16) + 0.25 * _noise(rng, size, 4)
    weight = np.clip(mix * 0.5 + 0.5, 0, 1)[..., None]
    canvas = np.rint(first * weight + second * (1 - weight)).astype(np.uint8)
    for _ in range(int(rng.integers(6, 20))):
        label = int(rng.integers(1, len(SHAPES_CLASSES)))
        color = _color(_HUES[label] + rng.normal(0, 8), rng.uniform(40, 220), rng.uniform(60, 240))
        start = rng.uniform(0, 1, 2) * size[::-1]
        bends = np.cumsum(
            np.vstack([start, rng.normal(0, 14, (int(rng.integers(1, 4)), 2))]), axis=0
        )
        points, thickness = [_fixed_point(bends)], int(rng.integers(1, 5))
        rounded = np.rint(color).tolist()
        cv2.polylines(canvas, points, False, rounded, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas.astype(np.float32)


def _noise(rng: np.random.Generator, size: tuple[int, int], grain: int) -> np.ndarray:
    """f32[H,W] of about -1 to 1: random values every `grain` pixels, interpolated smoothly."""
    coarse = rng.uniform(-1, 1, (size[0] // grain + 2, size[1] // grain + 2)).astype(np.float32)
    smooth = cv2.resize(
        coarse, (size[1] + 2 * grain, size[0] + 2 * grain), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(smooth[: size[0], : size[1]], np.float32)


def _light(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """f32[H,W,1]: a gentle gradient of brightness, around 1."""
    slope_y, slope_x = rng.uniform(-0.2, 0.2, 2)
    rows, columns = np.linspace(-1, 1, size[0])[:, None], np.linspace(-1, 1, size[1])[None]
    return np.asarray(1 + slope_y * rows + slope_x * columns, np.float32)[..., None]


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """f32[3] RGB, 0 to 255, of an HSV color: hue 0 to 180 (periodic), the others 0 to 255."""
    chroma = value * saturation / 255
    # The distance of the hue from each channel's own, as in the usual formula for HSV.
    turn = (np.array([5.0, 3.0, 1.0]) + (hue % 180) / 30) % 6
    share = 1 - np.clip(np.minimum(turn, 4 - turn), 0, 1)
    return np.asarray(chroma * share, np.float32) + np.float32(value - chroma)


def _blend(canvas: np.ndarray, colors: np.ndarray, cover: np.ndarray) -> np.ndarray:
    weight = cover[..., None].astype(np.float32) / 255
    return np.asarray(canvas * (1 - weight) + colors * weight)
