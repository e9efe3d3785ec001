"""PNG and JPEG files as arrays of pixels. A file is not trusted: its size is checked before it is unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535  # pixels, as JPEG has it: Pillow takes some bytes more for every row

# No file holds more pixels a byte than this; one that claims to would be filled up with grey. Deflate makes 1,032 bytes
# of one, of eight pixels each; JPEG takes a bit at least for 64 pixels. Small pictures are not worth the question.
_PIXELS_A_BYTE = {"PNG": 8 * 1032, "JPEG": 8 * 64}
_ALWAYS_ALLOWED = 1_000_000

# What Pillow raises for damaged files, beside its own errors.
_DAMAGED = (
    *(OSError, EOFError, SyntaxError, LookupError, TypeError, ValueError, ArithmeticError),
    *(struct.error, zlib.error),
)


def read_image(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> np.ndarray:
    """The picture at `path` as uint8 (channels, height, width); channels is 1 (grey) or 3 (red, green, blue).

    Raises FileNotFoundError, OSError or ValueError, naming the file, unless it is a PNG or JPEG picture of at most
    MAX_PIXELS pixels. Source of the limits: Pillow's notes on decompression bombs.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"{path}: the network takes {channels} channels; pictures give 1 or 3")
    with strict_warnings():
        picture, _ = open_upright(path, "L" if channels == 1 else "RGB")
    return resized(picture, (height, width))


@contextlib.contextmanager
def strict_warnings() -> Iterator[None]:
    """Make errors of Pillow's warnings of huge pictures; to be entered around open_upright, outside of threads."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of metadata that nothing here reads
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def open_upright(path: str | os.PathLike[str], mode: str) -> tuple[Image.Image, bool]:
    """(picture, grey): unpacked, turned as its EXIF orientation says, on white where transparent, as "L" or "RGB".

    grey tells whether the file holds shades of grey. Raises as read_image does.
    """
    from PIL import Image

    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such image; check the path")
    if not Path(path).is_file() and not Path(path).is_dir():  # opening a pipe would wait for its writer
        raise OSError(f"{path}: an image must be a regular file, not a device or a pipe")
    try:
        with _Bounded(io.FileIO(os.fspath(path))) as file, Image.open(file, formats=FORMATS) as picture:
            refusal = _refusal(picture, file.size)
            if not refusal:
                return _upright(picture, mode), picture.mode[0] in "1LI"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: the image has more than {MAX_PIXELS:,} pixels; use a smaller copy") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a {' or '.join(FORMATS)} image; convert it first") from error
    except MemoryError as error:
        raise MemoryError(f"{path}: the unpacked image does not fit") from error
    except _DAMAGED as error:
        raise OSError(f"{path}: the image cannot be read ({error})") from error
    raise ValueError(f"{path}: the image has {refusal}")


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for at a time than it has: Python takes as much memory before it reads."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size  # bytes

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, self.size))


def _refusal(picture: Image.Image, file_size: int) -> str:
    """What is wrong with the size that the picture claims, before memory is taken for it; "" if nothing is."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        return f"{width}×{height} pixels; at most {MAX_PIXELS:,} are read; use a smaller copy"
    if max(width, height) > MAX_SIDE:
        return f"{width}×{height} pixels; at most {MAX_SIDE:,} a side are read; cut it into parts"
    kind = "PNG" if picture.format == "PNG" else "JPEG"  # of which Pillow calls some MPO
    most = _PIXELS_A_BYTE[kind] * file_size
    if width * height > max(_ALWAYS_ALLOWED, most):
        return f"{width}×{height} pixels, more than {file_size} bytes can hold; it is damaged, use another copy"
    return ""


def resized(picture: Image.Image, size: tuple[int, int], keep_aspect: bool = False) -> np.ndarray:
    """uint8 (channels, height, width) of size (height, width); bilinear, antialiased.

    keep_aspect: scale the largest centred part that has the aspect of size, instead of stretching the whole picture
    """
    from PIL import Image

    height, width = size
    box = _centre(picture.size, size) if keep_aspect else None
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(scaled).reshape(height, width, -1).transpose(2, 0, 1)


def _centre(extent: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest centred part of a picture (width, height) with the aspect of size.

    It is cut out before it is scaled: a strip of one row, scaled as a whole, would not fit the memory.
    """
    width, height = extent
    scale = min(height / size[0], width / size[1])
    across, down = (width - scale * size[1]) / 2, (height - scale * size[0]) / 2
    return across, down, width - across, height - down


def _upright(picture: Image.Image, mode: str) -> Image.Image:
    """The picture turned as its EXIF orientation says, without transparency, as "L" or "RGB"."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel: convert() would cut them off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy it
