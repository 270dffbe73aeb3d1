"""Open an image from outside, safely: every fault is one line. Decoding processes import this, so it imports little."""

import base64
import functools
import io
import logging
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import ExifTags, Image, UnidentifiedImageError

from minigpt4.errors import UserError
from minigpt4.files import expand, read_file, walk

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
#: Panoramas have up to some 20,000; an image of 30,000,000 x 1 takes a gigabyte of weights to be resized.
MAX_SIDE = 32_768
LARGEST_IMAGE = 200_000_000  # bytes of an image's file: what MAX_PIXELS take uncompressed
#: What people have. Pillow's further formats (PostScript runs a program to open) stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
#: What cameras and browsers send. Pillow decodes some kinds of BMP and PPM in Python, for minutes.
SENT_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
#: How an image is turned that has this number as its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_KINDS = yaml.safe_load(Path(__file__).with_name("file_kinds.yaml").read_bytes())
IMAGE_ENDINGS = tuple(_KINDS["images"])
_BEGINNINGS = {kind: re.compile(start.encode(), re.DOTALL) for kind, start in _KINDS["beginnings"].items()}


def kind_of(data: bytes) -> str | None:
    """Which kind of file the first bytes tell: one of FORMATS, or another that is known, or None."""
    return next((kind for kind, start in _BEGINNINGS.items() if start.match(data[:512])), None)


def sort_images(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The images among `files`, by ending or else by content, and those that look like images but are not read."""
    images, left_out = [], []
    for path in files:
        ending = path.suffix[1:].lower()
        if ending in IMAGE_ENDINGS:
            images.append(path)
        elif ending in _KINDS["raw"]:
            left_out.append(path)
        elif ending not in _KINDS["texts"]:
            with suppress(OSError), path.open("rb") as file:
                kind = kind_of(file.read(512))
                if kind in FORMATS:
                    images.append(path)
                elif ending in _KINDS["other_images"] or kind in ("HEIC", "JPEG XL", "JPEG 2000"):
                    left_out.append(path)
    return images, left_out


def tell_left_out(left_out: Sequence[Path]) -> str:
    """Files that look like images and are not read, in words."""
    named = ", ".join(map(str, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
    return f"{len(left_out)} files left out that look like images ({named}); save them as JPEG or PNG"


def find_images(folder: str | Path) -> list[Path]:
    """The images in and below a folder, by name, with a warning of what looks like one. Raises UserError for none."""
    images, left_out = sort_images(walk(folder))
    if not images:
        why = f"; {tell_left_out(left_out)}" if left_out else f" ({', '.join(IMAGE_ENDINGS[:10])}, ...)"
        raise UserError(f"{folder}: holds no images{why}")
    if left_out:
        logger.warning("%s: %s", folder, tell_left_out(left_out))
    return images


def find_image(folder: Path, name: str, *, inside: bool = False) -> Path:
    """The image that a text names from `folder`, with or without ending, in any case; none beyond it if `inside`."""
    path = folder / name
    if not os.path.isfile(path):  # noqa: PTH113 - long names too
        path = folder / expand(name, variables=False)
    if not os.path.isfile(path):  # noqa: PTH113
        with suppress(OSError, ValueError):  # reading it says what is wrong
            listing = _listing(path.parent, path.parent.stat().st_mtime_ns)
            names = [fold(name) for name in (path.name, *(f"{path.name}.{ending}" for ending in IMAGE_ENDINGS))]
            path = next((path.with_name(listing[name]) for name in names if name in listing), path)
    # Another's dataset takes no file of this machine along.
    if inside and os.path.lexists(path) and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: leads out of {folder}")
    return path


@functools.lru_cache(maxsize=4)
def _listing(folder: Path, _changed: int) -> dict[str, str]:
    return {fold(name): name for name in sorted(os.listdir(folder), reverse=True)}  # noqa: PTH208 - names alone


def fold(name: str) -> str:
    """Equal for names that people take for the same: systems differ in capitals, and in how they write `é`."""
    return unicodedata.normalize("NFC", name).casefold()


def open_image(
    source: str | Path | bytes | Image.Image, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The image in RGB, turned the way its EXIF tag says, transparent parts on white; the first frame if it moves.

    `source` is a path, an encoded file's bytes (in one of `formats`), or a Pillow image. Raises UserError when there is
    no readable image, or it has more than `max_pixels` pixels or a side over MAX_SIDE (checked before decoding).
    """
    if isinstance(source, Image.Image):
        _check_size(source, "image", max_pixels)
        return _upright(_to_rgb(source, "image"), source)
    name, data = ("uploaded image", source) if isinstance(source, bytes) else (str(source), read_image(source))
    if not data:
        raise UserError(f"{name}: the file is empty; an image ({', '.join(formats[:4])}, ...) was expected")
    try:
        return _decode(data, name, max_pixels, formats)
    except _DamagedError:
        whole = _without_metadata(data)
        with suppress(_DamagedError):
            if whole != data:
                return _decode(whole, name, max_pixels, formats)
        raise


class _DamagedError(UserError):
    """What damaged pixels say, and damaged metadata."""


def _decode(data: bytes, name: str, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bombs, where _check_size is stricter, and about metadata
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
            _check_size(image, name, max_pixels)
            image.load()
            return _upright(_to_rgb(image, name), image)
        except UserError:
            raise
        except UnidentifiedImageError:
            kind = kind_of(data)
            if kind in formats:
                raise _DamagedError(f"{name}: broken or truncated image ({kind}); download it again") from None
            what = "not an image"
            if kind:
                remedy = _KINDS["remedies"].get(kind, "save it as JPEG or PNG")
                what = f"a {kind}, not an image that is read here; {remedy}"
            raise UserError(f"{name}: {what}; give a file in one of the formats {', '.join(formats)}") from None
        except Image.DecompressionBombError:
            raise UserError(f"{name}: more than the {max_pixels:,} pixels allowed; make it smaller first") from None
        except MemoryError:
            raise UserError(f"{name}: decoding it takes more memory than there is; make it smaller first") from None
        except Exception as error:  # decoders of broken files raise what they like
            # Metadata that unpack to far more than they are stay refused; other damage may be theirs alone.
            bomb = re.search("too large|too much memory", str(error), re.I)
            told = f"{name}: broken or truncated image ({error}); save or download it again"
            raise (UserError if bomb else _DamagedError)(told) from None


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG file with nothing but what its pixels need; other files as they are."""
    kind = kind_of(data)
    at = {"PNG": 8, "JPEG": 2}.get(str(kind), len(data))
    kept = [data[:at]]
    while kind == "PNG" and at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        at = end
    while kind == "JPEG" and at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        mark, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if mark == 0xEE or not (0xE1 <= mark <= 0xEF or mark == 0xFE):  # APP14 says how colours are coded
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """The image turned as the EXIF tag of `source` says, if one can be read; nothing of the metadata is written."""
    try:
        turn: Any = source.getexif().get(ExifTags.Base.Orientation)
        turn = int(turn[0] if isinstance(turn, (tuple, list)) else turn)
    except Exception:  # damaged metadata raise what they like, and cost no image
        return image
    if turn not in _TURNS:
        return image
    upright = image.transpose(_TURNS[turn])
    upright.info = {}  # else an image that is opened again would be turned again
    return upright


def read_image(path: str | Path) -> bytes:
    """The bytes of an image's file, not decoded. Raises UserError as `read_file` does."""
    return read_file(path, LARGEST_IMAGE, "an image")


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        told = f"is more than the {max_pixels:,} pixels allowed"
        raise UserError(f"{name}: {width} x {height} {told}; make it smaller first")
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{name}: {width} x {height}: a side may have {MAX_SIDE:,} pixels; make it smaller first")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # convert() would clip, not scale
        image = Image.fromarray(_eight_bits(image, name))
    if image.has_transparency_data:
        over = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), over)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (height, width).

    Integers from 0 on: white is the largest number of 8, 10, 12, 14 or 16 bits that none is above; 65,535 in PNG and
    PPM, whose numbers are stored so. Floats from 0 to 1: white is 1. Others: black and white are the least and the
    largest value. Raises UserError if values are not finite, or are all the same outside of those ranges.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode != "F" and low >= 0 and high < 2**16:
        bits = 16 if image.format in ("PNG", "PPM") else next(b for b in (8, 10, 12, 14, 16) if high < 2**b)
        return (values >> (bits - 8)).astype(np.uint8)
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = values.dtype.type(0), values.dtype.type(1)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UserError(f"{name}: its values ({low} to {high}) do not say what is black and white; save it in 8 bits")
    scaled = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
    return scaled.round().clip(0, 255).astype(np.uint8)


#: Width and height of a model's images, kind of resampling, and the shortest edge whose middle is cut out, or None.
Size = tuple[int, int, int, int | None]
_LONGEST = 16  # of an image whose middle is cut out, so many times its shorter side are resized at most


def fit(image: Image.Image, width: int, height: int, resample: int, edge: int | None = None) -> Image.Image:
    """The image at a model's size (with `edge` its middle, at that shorter side), the same with every Pillow.

    Pillow resamples one side after the other. Since release 13 the height comes first if it shrinks by more than twice
    as many pixels as the width; earlier releases did so never, which moves pixels of tall images by up to 2 of 255.
    """
    if edge:
        short = min(image.size)
        image = _middle(image, *(min(side, _LONGEST * short) for side in image.size))
        wide, high = (int(edge * side / short) for side in image.size)
        return _middle(fit(image, wide, high, resample), width, height)
    if image.height - height > max(0, 2 * (image.width - width)):
        image = image.resize((image.width, height), resample)
    return image.resize((width, height), resample)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def seen(image: Image.Image, width: int, height: int, resample: int, edge: int | None = None) -> Image.Image:
    """The part of the image that `fit` with these arguments shows the model, in the image's own pixels."""
    scale = min(image.size) / edge if edge else 0
    return _middle(image, round(width * scale), round(height * scale)) if edge else image


def to_pixels(image_processor: Any, images: Sequence[Image.Image], *, fitted: bool = False) -> np.ndarray:
    """Opened images as the model's image processor prepares them: float32 (n, 3, h, w); `fit` may have been done."""
    images = images if fitted else [fit(image, *size_of(image_processor)) for image in images]
    prepared = image_processor(list(images), do_resize=False, do_center_crop=False, return_tensors="np")
    return np.asarray(prepared["pixel_values"], dtype=np.float32)


def size_of(image_processor: Any) -> Size:
    """What `fit` takes for this image processor."""
    size, cut = image_processor.size, getattr(image_processor, "do_center_crop", None)
    shown = image_processor.crop_size if cut else size
    return shown["width"], shown["height"], int(image_processor.resample), size["shortest_edge"] if cut else None


def figure_png(canvas: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def data_url(data: bytes, kind: str) -> str:
    """An image file of this kind (`png`, `jpeg`, `webp`) as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image's file of this kind, which Pillow writes with these options."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_url(source: str | Path | bytes | Image.Image) -> str:
    """An image as a data URL: upright PNG, JPEG, WebP as they are, others remade. Raises UserError as `open_image`."""
    image = open_image(source)
    if not isinstance(source, Image.Image):
        data = source if isinstance(source, bytes) else read_image(source)
        if kind := _kind_to_send(data):
            return data_url(data, kind)
    kind = "jpeg" if image.width * image.height > 1_000_000 else "png"  # of photos, a PNG takes many times the bytes
    return data_url(encoded(image, kind, quality=95), kind)


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
