"""Label files: ids in one channel, a palette over them, or colours, all as train ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from liteseg.errors import UserError
from liteseg.reading import open_image, orientation, raw_mode, turned

from .tables import INVALID, VOID

Colour = tuple[int, int, int]

# modes of one channel whose samples are ids
_ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("RGB", "RGBA")
# what Pillow multiplies small grey samples with, to make them grey of 8 bits
_GREY_STEPS = {"L;2": 85, "L;4": 17}
# so many of what is wrong are named
_NAMED = 5


@dataclass(frozen=True)
class LabelCode:
    """How the label files of a data set say which class a pixel has.

    Attributes:
        lut: uint8 [256]: id in the file -> train id, VOID or INVALID.
        allowed: the ids of the table, for messages.
        class_names: one a train id.
        palette: colour of each train id; None where that is not known.
        void_colours: colours of void.
    """

    lut: np.ndarray
    allowed: str
    class_names: Sequence[str]
    palette: Sequence[Colour] | None
    void_colours: Sequence[Colour]

    def read(self, path: Path) -> np.ndarray:
        """Decodes a label file to uint8 [H, W] train ids, turned upright by the EXIF orientation of the file itself.

        Ids go through the table; 255 is void unless the table has another use for it. The colours of a file with a
        palette must be those of its ids: programs that make palettes anew permute the ids. (Where all colours are grey,
        they are the ids.) Files of colours are converted by them.

        Raises:
            FileNotFoundError: no such file.
            ValueError: broken, neither ids nor colours, or holding ids or colours that are none of the data set's; the
                text names the file and what is wrong.
        """
        with open_image(path) as image:
            step = _GREY_STEPS.get(raw_mode(image))
            pixels = np.asarray(image)
            if image.mode in _COLOUR_MODES:
                labels = self._from_colours(pixels[:, :, :3])
            elif image.mode in _ID_MODES:
                ids = _bytes(pixels if step is None else pixels // step, self.allowed)
                if image.mode == "P" and self.palette is not None:
                    ids = self._named_by_palette(ids, np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3))
                labels = self._from_ids(ids)
            else:
                raise UserError(
                    f"label: expected ids in a single channel, or RGB colours of the data set, got mode {image.mode}"
                )
            return turned(labels, orientation(image))

    def _from_ids(self, ids: np.ndarray) -> np.ndarray:
        table = self.lut
        if table[VOID] == INVALID:
            table = table.copy()
            table[VOID] = VOID
        labels = table[ids]
        wrong = np.unique(ids[labels == INVALID]).tolist()
        if wrong:
            raise UserError(f"label ids: expected {self.allowed}, got {_some(wrong)}")
        return labels

    def _named_by_palette(self, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
        """The ids of a file with a palette, which has to go with them; uint8 [H, W]."""
        palette = list(map(tuple, self.palette or ()))
        used = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist()
        shown = {i: tuple(map(int, colours[i])) if i < len(colours) else None for i in used}
        wrong = [i for i, colour in shown.items() if not self._may_show(i, colour, palette)]
        if not wrong:
            return ids
        if all(colour is not None and len(set(colour)) == 1 for colour in shown.values()):
            # a grey picture that was packed
            return colours[:, 0][ids]
        first = wrong[0]
        train = int(self.lut[first])
        expected = f"{self.class_names[train]} {palette[train]}" if train < len(palette) else "void"
        raise UserError(
            f"label palette: expected {expected} for id {first}, got {shown[first]}; saving with another palette may "
            "have permuted the ids: save ids as grey, or colours as RGB"
        )

    def _may_show(self, file_id: int, colour: tuple[int, ...] | None, palette: list[tuple[int, ...]]) -> bool:
        train = int(self.lut[file_id])
        if file_id == VOID or train == INVALID:
            # of ids that do not exist there is another message
            return True
        if train == VOID:
            return colour in self.void_colours or colour not in palette
        return colour == palette[train]

    def _from_colours(self, pixels: np.ndarray) -> np.ndarray:
        if self.palette is None:
            raise UserError("label: expected ids in a single channel (the data set says no colours), got colours")
        known = {tuple(colour): VOID for colour in self.void_colours}
        known |= {tuple(colour): train for train, colour in enumerate(self.palette)}
        if len(set(map(tuple, self.palette))) < len(self.palette):
            raise UserError("label: expected ids in a single channel (two classes share a colour), got colours")
        packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        keys = np.array([r << 16 | g << 8 | b for r, g, b in known], dtype=np.int32)
        order = np.argsort(keys)
        place = order[np.searchsorted(keys, packed, sorter=order).clip(max=len(keys) - 1)]
        unknown = keys[place] != packed
        if unknown.any():
            wrong = [(c >> 16, c >> 8 & 255, c & 255) for c in np.unique(packed[unknown]).tolist()]
            grey = ", in three channels ids?" if all(len(set(colour)) == 1 for colour in wrong) else ""
            raise UserError(f"label colours: expected those of the data set's palette, got {_some(wrong)}{grey}")
        return np.array(list(known.values()), dtype=np.uint8)[place]


def _bytes(ids: np.ndarray, allowed: str) -> np.ndarray:
    """Ids of any type as uint8; UserError where one has no place in that."""
    if ids.dtype in (np.uint8, np.bool_):
        return ids.astype(np.uint8)
    wrong = np.unique(ids[(ids < 0) | (ids > 255)]).tolist()
    if wrong:
        raise UserError(f"label ids: expected {allowed}, got {_some(wrong)}")
    return ids.astype(np.uint8)


def _some(values: Sequence[object]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(map(str, values[:_NAMED])) + more
