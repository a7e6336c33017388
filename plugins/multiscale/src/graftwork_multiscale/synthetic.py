"""A generated data set in COCO's format: coloured shapes on noise, outlined to the pixel."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def write_shapes(
    folder: Path, *, train: int = 8, val: int = 4, size: tuple[int, int] = (120, 160), seed: int = 0
) -> Path:
    """Write a small data set of one class, "object".

    Every fourth image is a portrait, and the second training image holds nothing, as real data do.

    Args:
        folder: Gets ``train.json``, ``val.json``, ``train/`` and ``val/``.
        train: Number of training images.
        val: Number of validation images.
        size: (height, width) of a landscape image, in pixels.
        seed: Of everything drawn.

    Returns:
        The folder.
    """
    chance = random.Random(seed)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            height, width = size if number % 4 != 3 else size[::-1]
            shapes = 0 if split == "train" and number == 1 else chance.randint(1, 4)
            image, polygons = _draw(height, width, shapes, chance)
            name = f"{number:04d}.png"
            image.save(folder / split / name)
            images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
            for polygon in polygons:
                annotations.append(_annotation(len(annotations) + 1, number + 1, polygon))
        (folder / f"{split}.json").write_text(
            json.dumps(
                {
                    "images": images,
                    "annotations": annotations,
                    "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
                }
            ),
            encoding="utf-8",
        )
    return folder


def _draw(
    height: int, width: int, shapes: int, chance: random.Random
) -> tuple[Image.Image, list[list[tuple[float, float]]]]:
    noise = np.random.default_rng(chance.getrandbits(32))
    image = Image.fromarray(noise.integers(60, 120, (height, width, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    polygons = []
    for _ in range(shapes):
        radius = chance.uniform(0.12, 0.28) * min(height, width)
        x, y = chance.uniform(radius, width - radius), chance.uniform(radius, height - radius)
        corners, turn = chance.choice((3, 4, 6, 16)), chance.uniform(0, math.pi)
        polygon = [
            (
                x + radius * math.cos(turn + k * math.tau / corners),
                y + radius * math.sin(turn + k * math.tau / corners),
            )
            for k in range(corners)
        ]
        pen.polygon(polygon, fill=tuple(chance.choice((30, 140, 250)) for _ in range(3)))
        polygons.append(polygon)
    return image, polygons


def _annotation(number: int, image: int, polygon: list[tuple[float, float]]) -> dict[str, Any]:
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    twice_area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(polygon)))
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "area": abs(twice_area) / 2,
        "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
        "segmentation": [[c for point in polygon for c in point]],
    }
