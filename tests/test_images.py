"""Bad pictures get one line each; good ones come out in RGB, upright, on white."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from minigpt4.errors import UserError
from minigpt4.images import image_url, open_image, to_pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_of(width: int, height: int) -> bytes:
    """A PNG file whose header claims that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_path_bytes_and_image_give_the_same(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture))
    for source in (path, str(path), path.read_bytes(), picture):
        opened = open_image(source)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_common_format_opens(picture: Image.Image, kind: str) -> None:
    assert open_image(encoded(picture, kind)).size == (60, 40)


def test_several_pictures_in_one_jpeg_as_cameras_write_them(picture: Image.Image) -> None:
    data = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert open_image(data).size == (60, 40)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png: no such file"):
        open_image(tmp_path / "nowhere.png")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        open_image(tmp_path)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png: the file is empty"):
        open_image(tmp_path / "empty.png")


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.4 ...", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_not_a_picture(data: bytes) -> None:
    with pytest.raises(UserError, match="not an image"):
        open_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated(picture: Image.Image, kind: str, share: float) -> None:
    data = encoded(picture, kind)
    with pytest.raises(UserError) as caught:
        open_image(data[: int(len(data) * share)])
    assert "\n" not in str(caught.value)


def test_damaged_in_the_middle(picture: Image.Image) -> None:
    data = bytearray(encoded(picture))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UserError, match="broken or truncated"):
        open_image(bytes(data))


@pytest.mark.parametrize("side", [9_000, 12_000, 50_000])  # Pillow is silent, warns, and raises at these
@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(UserError, match="64,000,000 pixels allowed"):
        open_image(png_of(side, side))


def test_the_limit_can_be_set(picture: Image.Image) -> None:
    assert open_image(picture, max_pixels=2400).size == (60, 40)
    with pytest.raises(UserError, match="60 x 40 is more than the 2,399 pixels"):
        open_image(encoded(picture), max_pixels=2399)


def test_turned_as_its_exif_tag_says() -> None:
    image = Image.new("RGB", (20, 10), "white")
    image.paste("red", (0, 0, 10, 10))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright = open_image(encoded(image, exif=exif.tobytes()))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0)
    assert upright.getpixel((5, 17)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(mode: str) -> None:
    image = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert open_image(encoded(image)).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_palette_is_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 0, 0, 0])
    assert open_image(encoded(image, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert open_image(encoded(image)).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk() -> None:
    assert open_image(encoded(Image.new("CMYK", (4, 4)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("width", "height", "first"),
    [(60, 120, "height"), (20, 33, "height"), (60, 60, "width"), (100, 150, "width"), (20, 30, "width")],
)
def test_pixels_are_the_same_with_every_pillow(width: int, height: int, first: str) -> None:
    """Which side is resampled first shows in the rounding, and releases of Pillow do not agree about it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    between = (width, 32) if first == "height" else (32, height)
    expected = np.asarray(image.resize(between, Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC))
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    [pixels] = to_pixels(processor, [image])
    scaled = pixels.transpose(1, 2, 0) * processor.image_std + np.asarray(processor.image_mean)
    assert np.abs(scaled * 255 - expected).max() < 1e-3


def sent(source: object) -> tuple[str, bytes]:
    """(kind, bytes) of what an endpoint gets."""
    head, _, data = image_url(source).partition(",")  # type: ignore[arg-type]
    return head.removeprefix("data:image/").removesuffix(";base64"), base64.b64decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_endpoint_gets_an_upright_image_as_it_is(picture: Image.Image, kind: str, tmp_path: Path) -> None:
    data = encoded(picture, kind)
    (tmp_path / "photo.bin").write_bytes(data)
    assert sent(data) == sent(tmp_path / "photo.bin") == (kind.lower(), data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "AVIF", "deep", "moving", "CMYK", "turned", "large"])
def test_an_endpoint_gets_another_image_as_png_or_jpeg(picture: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "deep":
        data = encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG")
    elif kind == "moving":
        data = encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)])
    elif kind == "CMYK":
        data = encoded(picture.convert("CMYK"), "JPEG")
    elif kind == "turned":
        data = encoded(picture, "WEBP", exif=exif, lossless=True)
    elif kind == "large":
        data = encoded(picture.resize((1200, 1000)), "BMP")
    else:
        data = encoded(picture, kind)
    found, made = sent(data)
    assert found == ("jpeg" if kind == "large" else "png")
    with Image.open(io.BytesIO(made)) as image:
        assert (image.format, image.mode, not image.getexif()) == (found.upper(), "RGB", True)
    difference = np.asarray(open_image(made), int) - np.asarray(open_image(data), int)
    assert np.abs(difference).mean() < 2
    if kind != "large":
        assert not difference.any()


def test_an_endpoint_gets_an_opened_image_as_png(picture: Image.Image) -> None:
    kind, data = sent(picture)
    assert kind == "png"
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(picture)))


def app1(payload: bytes, mark: int = 0xE1) -> bytes:
    """A JPEG, 48 x 32, with a segment of metadata."""
    data = encoded(Image.new("RGB", (48, 32), (200, 30, 30)), "JPEG")
    return data[:2] + bytes([0xFF, mark]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png_with(inner: bytes) -> bytes:
    data = encoded(Image.new("RGB", (48, 32), (200, 30, 30)))
    return data[:33] + inner + data[33:]


TURNED = b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 8, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (app1(b"ICC_PROFILE\0\1\1" + b"broken", 0xE2), (48, 32)),
        (app1(b"ICC_PROFILE\0\7\2", 0xE2), (48, 32)),
        (app1(b"MPF\0II*\0\x08\0\0\0\3\0broken", 0xE2), (48, 32)),
        (app1(b"Photoshop 3.0\0008BIM\4\4\0\0\xff\xff\xff\xff", 0xED), (48, 32)),
        (app1(TURNED + struct.pack("<HHII", 0x8769, 4, 1, 10**9)), (32, 48)),
        (app1(TURNED + struct.pack("<HHII", 0x9999, 99, 10**9, 0)), (32, 48)),
        (app1(b"\xff" * 30, 0xFE), (48, 32)),
        (png_with(chunk(b"tEXt", b"Author\0me", crc=0)), (48, 32)),
        (png_with(chunk(b"pHYs", b"")), (48, 32)),
        (png_with(chunk(b"gAMA", b"\0")), (48, 32)),
        (png_with(chunk(b"iCCP", b"icc\0\7xx")), (48, 32)),
        (png_with(chunk(b"zTXt", b"a\0\0broken")), (48, 32)),
    ],
)
def test_what_is_not_pixels_costs_no_image(data: bytes, size: tuple[int, int]) -> None:
    opened = open_image(data)
    assert opened.size == size
    assert np.abs(np.asarray(opened).astype(int) - (200, 30, 30)).max() < 8


def grey(values: np.ndarray, kind: str = "TIFF") -> np.ndarray:
    return np.asarray(open_image(encoded(Image.fromarray(values), kind)))[..., 0]


RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 255).astype(np.int32), (RAMP * 1023).astype(np.uint16), (RAMP * 4095).astype(np.uint16),
        (RAMP * 3_000_000).astype(np.int32), (RAMP * 4095 - 1024).astype(np.int32), (RAMP * 1e9).astype(np.int32),
        RAMP.astype(np.float32), (RAMP * 7 - 3).astype(np.float32), (RAMP * 700 + 5000).astype(np.float32),
    ],
)  # fmt: skip
def test_grey_of_more_than_8_bits_has_its_own_range(values: np.ndarray) -> None:
    assert np.abs(grey(values) - RAMP * 255).max() < 6


def test_a_dark_png_stays_dark_and_sixteen_bits_are_turned() -> None:
    assert grey((RAMP * 4095).astype(np.uint16), "PNG").max() == 15
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray((RAMP * 65535).astype(np.uint16))
    assert open_image(encoded(image, exif=exif.tobytes())).size == (8, 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, 5000.0])
def test_grey_of_no_known_range_is_refused(value: float) -> None:
    values = np.full((8, 8), value, np.float32)
    with pytest.raises(UserError, match="do not say what is black and white; save it in 8 bits"):
        grey(values)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC, not an image that is read here; save it as JPEG"),
        (b"<!DOCTYPE html><html>404", "the download failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "a SVG"),
        (b"\xff\xd8\xff\xe0", "broken or truncated image"),
    ],
)
def test_what_a_file_is_instead_is_told(data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_image(data)


def test_an_image_that_is_opened_twice_is_turned_once(picture: Image.Image) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    once = open_image(encoded(picture, "PNG", exif=turned))
    assert once.size == picture.size[::-1]
    assert np.array_equal(np.asarray(open_image(once)), np.asarray(once))
