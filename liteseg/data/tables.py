"""Class tables: names, colours, categories and label-id conversion.

Train ids are what the networks predict (0..K-1); 255 is void everywhere in liteseg.
"""

from __future__ import annotations

import numpy as np

VOID = 255

# RGB in 0..1; the statistics every ImageNet backbone here was trained with
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
CAMVID_VOID_ID = 11

CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
CITYSCAPES_PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
# of the classes that are not evaluated, as far as no evaluated class has the same
CITYSCAPES_VOID_COLOURS = (
    (0, 0, 0),
    (111, 74, 0),
    (81, 0, 81),
    (250, 170, 160),
    (230, 150, 140),
    (180, 165, 180),
    (150, 100, 100),
    (150, 120, 90),
    (0, 0, 90),
    (0, 0, 110),
)
# category name -> train ids; merged before counting for the category score
CITYSCAPES_CATEGORIES = {
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}
# labelId of each train id; the benchmark server wants these
CITYSCAPES_TRAIN_TO_LABEL = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_NUM_LABEL_IDS = 34

# entry of a lookup table for an id that the label format does not know
INVALID = 254


def _camvid_lut() -> np.ndarray:
    lut = np.full(256, INVALID, dtype=np.uint8)
    lut[: len(CAMVID_CLASSES)] = np.arange(len(CAMVID_CLASSES))
    lut[CAMVID_VOID_ID] = VOID
    return lut


def _cityscapes_lut() -> np.ndarray:
    lut = np.full(256, INVALID, dtype=np.uint8)
    lut[:CITYSCAPES_NUM_LABEL_IDS] = VOID
    # licence plates are labelId -1, which 8-bit files hold as 255
    lut[255] = VOID
    lut[list(CITYSCAPES_TRAIN_TO_LABEL)] = np.arange(len(CITYSCAPES_CLASSES))
    return lut


# uint8 [256]: id in the label file -> train id, VOID or INVALID
CAMVID_LUT = _camvid_lut()
CITYSCAPES_LUT = _cityscapes_lut()


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """RGB colours for classes without a palette of their own.

    Bit k of the class number + 1 sets the high bits of red, green and blue in turn, so neighbours differ strongly, a
    class keeps its colour whatever the number of classes, and black is left to void. Distinct for up to 256 classes.
    """
    colours = []
    for label in range(num_classes):
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= ((label + 1) >> bit & 1) << (7 - bit // 3)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)
