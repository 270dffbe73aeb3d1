"""Open an image from outside, safely: every way in which a file can be bad becomes one line that says so.

Normalising belongs to the image processor that a model brings. Only Pillow and NumPy are imported here: processes that
decode strangers' images start with this file (`app/decoder.py`).
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from minigpt4.errors import UserError
from minigpt4.files import read_file

MAX_PIXELS = 64_000_000
#: Panoramas have up to some 20,000; an image of 30,000,000 x 1 takes a gigabyte of weights to be resized.
MAX_SIDE = 32_768
#: Bytes of an image's file: what MAX_PIXELS take uncompressed.
LARGEST_IMAGE = 200_000_000
#: What people have. Pillow's further formats (PostScript runs a program to open) stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
#: What cameras and browsers send. Pillow decodes some kinds of BMP and PPM in Python, for minutes.
SENT_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
#: How the names of picture files end, in any case.
PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")


def is_picture(path: Path) -> bool:
    """Whether the file's name says that it is a picture."""
    return path.suffix[1:].lower() in PICTURE_ENDINGS


def open_image(
    source: str | Path | bytes | Image.Image, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The picture in RGB, turned the way its EXIF tag says, transparent parts on white; the first frame if it moves.

    `source` is a path, an encoded file's bytes (in one of `formats`), or a Pillow image. Raises UserError when there is
    no readable picture, or it has more than `max_pixels` pixels or a side over MAX_SIDE (checked before decoding).
    """
    if isinstance(source, Image.Image):
        _check_size(source, "image", max_pixels)
        return _to_rgb(ImageOps.exif_transpose(source))
    if isinstance(source, bytes):
        name, data = "uploaded image", source
    else:
        name = str(source)
        data = read_image(source)
    if not data:
        raise UserError(f"{name}: the file is empty; a picture ({', '.join(formats[:4])}, ...) was expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size is stricter
            image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a picture; give a file in one of the formats {', '.join(formats)}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than the {max_pixels:,} pixels allowed; make it smaller first") from None
    except Exception as error:  # decoders of broken headers raise what they like
        raise UserError(f"{name}: broken picture ({error}); save or download it again") from None
    _check_size(image, name, max_pixels)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except MemoryError:
        raise UserError(f"{name}: decoding it takes more memory than there is; make it smaller first") from None
    except Exception as error:  # those of broken data too: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name}: broken or truncated picture ({error}); save or download it again") from None


def read_image(path: str | Path) -> bytes:
    """The bytes of an image's file, not decoded. Raises UserError as `read_file` does."""
    return read_file(path, LARGEST_IMAGE, "an image")


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width} x {height} is more than the {max_pixels:,} pixels allowed; make it smaller first"
        )
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{name}: {width} x {height}: a side may have {MAX_SIDE:,} pixels; make it smaller first")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: convert() would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        over = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), over)
    return image.convert("RGB")


def fit(image: Image.Image, width: int, height: int, resample: int) -> Image.Image:
    """The image at a model's size, the same with every Pillow.

    Pillow resamples one side, rounds, and then the other. Since release 13 the height comes first if it shrinks by more
    than twice as many pixels as the width; earlier releases did so never, which in tall pictures moves pixels by up to
    2 of 255 levels.
    """
    if image.height - height > max(0, 2 * (image.width - width)):
        image = image.resize((image.width, height), resample)
    return image.resize((width, height), resample)


def to_pixels(image_processor: Any, images: Sequence[Image.Image]) -> np.ndarray:
    """Opened pictures as the model's image processor prepares them: float32 (n, 3, h, w). `fit` may come before."""
    fitted = [fit(image, *size_of(image_processor)) for image in images]
    return np.asarray(image_processor(fitted, return_tensors="np")["pixel_values"], dtype=np.float32)


def size_of(image_processor: Any) -> tuple[int, int, int]:
    """What `fit` takes for this image processor: width, height, kind of resampling."""
    size = image_processor.size
    return size["width"], size["height"], int(image_processor.resample)


def data_url(data: bytes, kind: str) -> str:
    """An image file of this kind (`png`, `jpeg`, `webp`) as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_url(source: str | Path | bytes | Image.Image) -> str:
    """An image as every endpoint takes it, in a data URL: an upright PNG, JPEG or WebP as it is, others made one.

    Raises UserError as `open_image`.
    """
    image = open_image(source)
    if not isinstance(source, Image.Image):
        data = source if isinstance(source, bytes) else read_image(source)
        if kind := _kind_to_send(data):
            return data_url(data, kind)
    kind = "jpeg" if image.width * image.height > 1_000_000 else "png"  # of photos, a PNG takes many times the bytes
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95)
    return data_url(buffer.getvalue(), kind)


def _kind_to_send(data: bytes) -> str | None:
    """png, jpeg or webp if the file is one, upright, does not move and has 8 bits a channel at most; else None."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as file:
            upright = file.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # another format, or damaged metadata, which raise what they like
        return None
    deep = file.format == "PNG" and data[24] > 8  # Pillow opens 16-bit colours as RGB
    plain = upright and not deep and file.mode != "CMYK" and not getattr(file, "is_animated", False)
    return str(file.format).lower() if plain and file.format != "MPO" else None
