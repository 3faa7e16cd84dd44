"""Draws the street of `liteseg demo`: `python -m tests.data.draw_street [FILE]`.

A picture of our own, so that the package may hold one. Seen from a car: each pixel is a ray that meets the ground, the
fronts of houses on both sides, or the sky; trees, cars, poles and a person stand in front, from the far to the near.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, FINER = 480, 360, 2
FILE = Path(__file__).resolve().parents[2] / "liteseg/assets/drawn_street.jpg"
# of the camera, in units of the picture's width and metres
FOCAL, HORIZON, EYE = 1.05, 0.47, 1.5
ROAD, KERB, HOUSES = 4.2, 7.0, 7.5


def _noise(rng: np.random.Generator, shape: tuple[int, int], *cells: int) -> np.ndarray:
    """Smooth noise of several cell sizes in pixels, about 0 with deviation 1."""
    total = np.zeros(shape)
    for cell in cells:
        small = rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2)).astype(np.float32)
        grown = Image.fromarray(small).resize((shape[1] + cell, shape[0] + cell), Image.Resampling.BICUBIC)
        total += np.asarray(grown)[: shape[0], : shape[1]]
    return total / len(cells) ** 0.5


def _colour(*rgb: float) -> np.ndarray:
    return np.array(rgb, dtype=np.float64)


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sky, houses and ground as float [height, width, 3]."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    right = (u - width / 2) / (FOCAL * width)
    down = (v - HORIZON * height) / (FOCAL * width)
    fine, coarse = _noise(rng, (height, width), 1, 3), _noise(rng, (height, width), 8, 24)

    sky = _colour(205, 216, 230) + (1 - v / (HORIZON * height))[..., None] * _colour(-45, -28, 0)
    sky = sky + np.clip(coarse, 0, 2)[..., None] * _colour(12, 9, 5)

    # distances along the ray to the ground and to the fronts
    ground = EYE / np.maximum(down, 1e-6)
    front = HOUSES / np.maximum(np.abs(right), 1e-6)
    depth = np.minimum(ground, front)
    x, up = right * depth, EYE - down * depth

    side = np.where(right < 0, 0, 1)
    house = np.floor((depth + 3 * side) / 9).astype(int)
    tall = 7 + (house * 7 + side * 5) % 4
    walls = np.array([(150, 108, 84), (172, 160, 140), (128, 92, 76), (186, 172, 150), (140, 120, 104)], np.float64)
    wall = walls[(house * 3 + side) % len(walls)]
    along = (depth + 3 * side) % 9
    window = (np.abs(along % 3 - 1.5) < 0.55) & (np.abs(up % 2.8 - 1.5) < 0.75) & (up < tall - 0.6) & (up > 0.7)
    bricks = 1 + 0.06 * fine + 0.05 * coarse
    wall = np.where(window[..., None], _colour(52, 58, 66) + 8 * coarse[..., None], wall * bricks[..., None])
    wall = np.where((np.abs(up - tall) < 0.25)[..., None], _colour(84, 78, 74), wall)
    wall = wall * (0.62 + 0.38 * side)[..., None]

    asphalt = _colour(96, 95, 98) + (5 * fine + 5 * coarse)[..., None]
    dashes = (np.abs(x) < 0.09) & (ground % 5 < 2.2)
    edge = np.abs(np.abs(x) - ROAD + 0.35) < 0.06
    asphalt = np.where((dashes | edge)[..., None], _colour(205, 203, 196), asphalt)
    slabs = _colour(150, 144, 138) + (6 * fine + 5 * coarse)[..., None]
    slabs = np.where(((ground % 1.2 < 0.05) | (np.abs(x) % 1.2 < 0.04))[..., None], slabs * 0.85, slabs)
    floor = np.where((np.abs(x) < ROAD)[..., None], asphalt, slabs)
    floor = np.where((np.abs(np.abs(x) - ROAD) < 0.12)[..., None], _colour(176, 172, 166), floor)

    seen = np.where(((ground < front) & (down > 0))[..., None], floor, wall)
    haze = np.clip(depth / 130, 0, 0.9)[..., None]
    seen = seen * (1 - haze) + _colour(196, 204, 214) * haze
    return np.where(((up > tall) | (depth > 220))[..., None], sky, seen)


def _place(x: float, y: float, z: float, width: int, height: int) -> tuple[float, float]:
    """Pixel of a point: metres to the right, above the ground, ahead."""
    return width / 2 + x / z * FOCAL * width, HORIZON * height + (EYE - y) / z * FOCAL * width


def _tree(rng: np.random.Generator, picture: Image.Image, x: float, z: float, tall: float) -> None:
    size = picture.size
    draw = ImageDraw.Draw(picture)
    scale = FOCAL * size[0] / z
    foot, crown = _place(x, 0, z, *size), _place(x, tall * 0.68, z, *size)
    draw.line([foot, crown], fill=(62, 48, 40), width=max(2, round(0.3 * scale)))
    for shade in np.linspace(0.55, 1.15, 420):
        turn, reach = rng.uniform(0, 2 * np.pi), tall * 0.34 * rng.uniform(0, 1) ** 0.5 * scale
        at = crown[0] + reach * np.cos(turn), crown[1] + 0.9 * reach * np.sin(turn)
        r = 0.22 * scale * rng.uniform(0.4, 1.1)
        green = _colour(66, 86, 44) * shade * rng.uniform(0.75, 1.2)
        draw.ellipse([at[0] - r, at[1] - r, at[0] + r, at[1] + r], fill=tuple(green.astype(int)))


def _car(picture: Image.Image, x: float, z: float, paint: tuple[int, int, int]) -> None:
    """Seen from behind, with its side towards the middle of the road."""
    size = picture.size
    draw = ImageDraw.Draw(picture)

    def box(left: float, bottom: float, right: float, top: float, fill: tuple[int, int, int], ahead: float = z) -> None:
        a, b = _place(x + left, top, ahead, *size), _place(x + right, bottom, ahead, *size)
        draw.rounded_rectangle([*a, *b], radius=max(1, (b[0] - a[0]) / 14), fill=fill)

    def quad(points: list[tuple[float, float, float]], fill: tuple[int, int, int]) -> None:
        draw.polygon([_place(x + across, up, ahead, *size) for across, up, ahead in points], fill=fill)

    inner = -0.85 if x > 0 else 0.85
    darker = tuple(int(0.75 * c) for c in paint)
    shadow = [(-1.0, 0.0, z - 0.1), (1.0, 0.0, z - 0.1), (1.0, 0.0, z + 4.2), (-1.0, 0.0, z + 4.2)]
    quad(shadow, (48, 47, 50))
    quad([(inner, 0.25, z), (inner, 0.95, z), (inner, 0.95, z + 4), (inner, 0.25, z + 4)], darker)
    quad([(inner, 0.95, z + 0.3), (inner * 0.85, 1.42, z + 0.9), (inner * 0.85, 1.42, z + 2.4), (inner, 0.95, z + 3)],
         (44, 50, 58))  # fmt: skip
    for wheel in (0.8, 3.2):
        a, b = _place(x + inner, 0.62, z + wheel, *size), _place(x + inner, 0.0, z + wheel + 0.55, *size)
        draw.ellipse([min(a[0], b[0]), a[1], max(a[0], b[0]), b[1]], fill=(28, 28, 30))
    box(-0.82, 0.0, -0.55, 0.45, (26, 26, 28))
    box(0.55, 0.0, 0.82, 0.45, (26, 26, 28))
    box(-0.85, 0.28, 0.85, 1.0, paint)
    box(-0.72, 0.9, 0.72, 1.45, paint)
    box(-0.62, 0.96, 0.62, 1.36, (50, 58, 68))
    box(-0.82, 0.7, -0.56, 0.88, (168, 36, 32))
    box(0.56, 0.7, 0.82, 0.88, (168, 36, 32))
    box(-0.24, 0.45, 0.24, 0.58, (214, 206, 150))


def _pole(picture: Image.Image, x: float, z: float) -> None:
    foot, top = _place(x, 0, z, *picture.size), _place(x, 5.5, z, *picture.size)
    thick = max(2, round(0.12 * FOCAL * picture.width / z))
    ImageDraw.Draw(picture).line([foot, top], fill=(86, 88, 90), width=thick)


def _person(picture: Image.Image, x: float, z: float) -> None:
    draw, size = ImageDraw.Draw(picture), picture.size
    for left, bottom, right, top, fill in (
        (-0.17, 0.0, -0.02, 0.85, (40, 44, 62)),
        (0.03, 0.0, 0.18, 0.85, (36, 40, 56)),
        (-0.24, 0.8, 0.24, 1.45, (122, 44, 46)),
        (-0.11, 1.47, 0.11, 1.74, (176, 132, 108)),
    ):
        draw.rounded_rectangle([*_place(x + left, top, z, *size), *_place(x + right, bottom, z, *size)], 3, fill=fill)


def draw_street(seed: int = 7) -> Image.Image:
    """The picture, RGB, 480 x 360; the same for the same seed."""
    rng = np.random.default_rng(seed)
    scene = _scene(rng, HEIGHT * FINER, WIDTH * FINER)
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    for z in (70, 46, 30):
        _tree(rng, picture, -6.4, z, 7.5)
        _tree(rng, picture, 6.4, z - 6, 7.0)
    for z in (52, 33, 20):
        _pole(picture, 5.0, z)
    _car(picture, -3.1, 34, (70, 84, 112))
    _car(picture, 3.0, 26, (150, 152, 156))
    _car(picture, 3.0, 17, (122, 34, 36))
    _car(picture, -3.1, 15, (60, 64, 70))
    _person(picture, 5.8, 14)
    small = picture.filter(ImageFilter.GaussianBlur(0.9)).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    grain = rng.normal(0, 3.5, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    draw_street().save(target, quality=88)
