"""Open a picture from outside, safely: every way in which a file can be bad becomes one line that says so.

Knows nothing about models; resizing and normalising belong to the image processor that a model brings.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minigpt4.errors import UserError

MAX_PIXELS = 64_000_000
#: What people have. Pillow's further formats (PostScript runs a program to open) stay closed to strangers' files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
#: How the names of picture files end, in any case.
PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")


def is_picture(path: Path) -> bool:
    """Whether the file's name says that it is a picture."""
    return path.suffix[1:].lower() in PICTURE_ENDINGS


def open_image(source: str | Path | bytes | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in RGB, turned the way its EXIF tag says, transparent parts on white; the first frame if it moves.

    `source` is a path, an encoded file's bytes, or a Pillow image. Raises UserError when there is no readable picture
    or it has more than `max_pixels` pixels (checked before decoding).
    """
    if isinstance(source, Image.Image):
        _check_size(source, "image", max_pixels)
        return _to_rgb(source)
    if isinstance(source, bytes):
        name, data = "uploaded image", source
    else:
        name = str(source)
        data = _read(Path(source).expanduser())
    if not data:
        raise UserError(f"{name}: the file is empty; a picture ({', '.join(FORMATS[:5])}, ...) was expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size is stricter
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a picture; give a file in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than the {max_pixels:,} pixels allowed; make it smaller first") from None
    except Exception as error:  # decoders of broken headers raise what they like
        raise UserError(f"{name}: broken picture ({error}); save or download it again") from None
    _check_size(image, name, max_pixels)
    try:
        image.load()
        return _to_rgb(image)
    except Exception as error:  # those of broken data too: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name}: broken or truncated picture ({error}); save or download it again") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a picture") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; give the path of one picture") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width} x {height} is more than the {max_pixels:,} pixels allowed; make it smaller first"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16-bit grey: convert() would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_pixels(image_processor: Any, images: Sequence[Image.Image]) -> np.ndarray:
    """Opened pictures as the model's image processor prepares them: float32 (n, 3, h, w), the same with every Pillow.

    Pillow resamples one side, rounds, and then the other. Since release 13 the height comes first if it shrinks by more
    than twice as many pixels as the width; earlier releases did so never, which in tall pictures moves pixels by up to
    2 of 255 levels.
    """
    width, height = image_processor.size["width"], image_processor.size["height"]
    in_order = [
        image.resize((image.width, height), image_processor.resample)
        if image.height - height > max(0, 2 * (image.width - width))
        else image
        for image in images
    ]
    return np.asarray(image_processor(in_order, return_tensors="np")["pixel_values"], dtype=np.float32)
