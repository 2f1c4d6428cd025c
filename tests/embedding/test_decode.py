import pickle
import struct
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from embedding.images import decode
from embedding.images.decode import FORMATS, BadImage, decode_image
from embedding.images.frames import MAX_FRAMES
from tests.support.builders import encoded, noise

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)
GREY = (128, 128, 128)
SIZE = (48, 32)


def plain(mode: str, colour: Any, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new(mode, size, colour)


def png(
    size: tuple[int, int], depth: int, colour_type: int, row: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """Build a PNG that Pillow does not write; every row is `row`."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * min(size[1], 100))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(size: tuple[int, int], bits: int, photometric: int, pixels: bytes, **more: int) -> bytes:
    """Build a TIFF of one uncompressed grey strip; `more` is `t<tag>=value`."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 273: 200, 279: len(pixels)}
    tags |= {int(tag[1:]): value for tag, value in more.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return (b"II*\0" + struct.pack("<I", 8) + ifd).ljust(200, b"\0") + pixels


def bmp_rle(body: bytes) -> bytes:
    """Build a run-length coded 16x16 BMP, which Pillow does not write."""
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + palette + body


def transparent_palette() -> bytes:
    palette = plain("P", 1)
    palette.putpalette([*RED, *BLUE])
    return encoded(palette, "PNG", transparency=1)


def ycck() -> bytes:
    """Build a red YCCK JPEG as Adobe writes it.

    Amounts of ink (no cyan, all magenta and yellow) are taken for RGB.
    """
    ink = plain("RGB", (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    assert isinstance(ink, tuple)
    stored = tuple(255 - value for value in ink)  # Pillow inverts what it writes
    data = bytearray(encoded(plain("CMYK", (*stored, 0)), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2  # the transform: 0 is CMYK, 2 is YCCK
    return bytes(data)


def frames(format: str, count: int = 3) -> bytes:
    later = [plain("RGB", (0, 0, index % 256)) for index in range(1, count)]
    return encoded(plain("RGB", RED), format, save_all=True, append_images=later)


SIXTEEN_BIT_RED = struct.pack(">3H", 0xFF12, 0, 0) * SIZE[0]
SIXTEEN_BIT_GREY = struct.pack(">H", 0x8012) * SIZE[0]

PIXELS = {
    **{f"RGB {format}": (encoded(plain("RGB", RED), format), RED) for format in FORMATS},
    **{
        f"RGBA {format}": (encoded(plain("RGBA", (0, 0, 0, 127)), format), GREY)
        for format in ("PNG", "TIFF", "AVIF", "HEIF")
    },
    "RGBA WebP": (encoded(plain("RGBA", (0, 0, 0, 127)), "WEBP", lossless=True, exact=True), GREY),
    "RGBA that is all transparent": (encoded(plain("RGBA", (0, 0, 0, 0)), "PNG"), WHITE),
    "progressive JPEG": (encoded(plain("RGB", RED), "JPEG", progressive=True), RED),
    "grey JPEG": (encoded(plain("L", 128), "JPEG"), GREY),
    "grey PNG": (encoded(plain("L", 128), "PNG"), GREY),
    "grey with alpha": (encoded(plain("LA", (0, 127)), "PNG"), GREY),
    "1 bit": (encoded(plain("1", 1), "PNG"), WHITE),
    "1 bit, group 4": (encoded(plain("1", 0), "TIFF", compression="group4"), (0, 0, 0)),
    "palette": (encoded(plain("RGB", RED).quantize(4), "PNG"), RED),
    "palette with a transparent entry": (transparent_palette(), WHITE),
    "palette with alpha per entry": (encoded(plain("RGBA", (0, 0, 0, 127)).quantize(4), "PNG"), GREY),
    "palette and alpha": (encoded(plain("RGB", RED).quantize(4).convert("PA"), "TIFF"), RED),
    "GIF with a transparent entry": (encoded(plain("RGBA", (0, 0, 0, 0)), "GIF"), WHITE),
    "transparent colour in RGB": (encoded(plain("RGB", RED), "PNG", transparency=RED), WHITE),
    "transparent level in grey": (encoded(plain("L", 9), "PNG", transparency=9), WHITE),
    "grey with premultiplied alpha": (tiff(SIZE, 8, 1, b"\0\x7f" * 48 * 32, t277=2, t338=1), GREY),
    "16-bit grey PNG": (png(SIZE, 16, 0, SIXTEEN_BIT_GREY), GREY),
    "16-bit grey PNG, transparent": (png(SIZE, 16, 0, SIXTEEN_BIT_GREY, (b"tRNS", b"\x80\x12")), WHITE),
    "16-bit red PNG": (png(SIZE, 16, 2, SIXTEEN_BIT_RED), RED),
    "16-bit TIFF": (encoded(plain("I;16", 0x8012), "TIFF"), GREY),
    "16-bit TIFF, big-endian": (encoded(plain("I;16B", 0x8012), "TIFF"), GREY),
    "16-bit TIFF, packed": (encoded(plain("I;16", 0x8012), "TIFF", compression="tiff_lzw"), GREY),
    "12-bit grey TIFF": (tiff((16, 16), 12, 1, b"\x80\x08\x00" * 128), GREY),
    "16-bit grey TIFF where white is zero": (tiff((16, 16), 16, 0, b"\xff\x7f" * 256), GREY),
    "32-bit grey TIFF": (encoded(plain("I", 0x8012), "TIFF"), GREY),
    "floating point TIFF": (encoded(plain("F", 0.5), "TIFF"), GREY),
    "CMYK TIFF": (encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "CMYK JPEG, inverted by Adobe": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "YCCK JPEG": (ycck(), RED),
    "YCbCr TIFF": (encoded(plain("RGB", RED).convert("YCbCr"), "TIFF"), RED),
    "JPEG inside a TIFF": (encoded(plain("RGB", RED), "TIFF", compression="jpeg"), RED),
    "LAB TIFF": (encoded(plain("RGB", RED).convert("LAB"), "TIFF"), RED),
    "run-length coded BMP": (bmp_rle(b"\x10\x80\0\0" * 16 + b"\0\1"), GREY),
    **{
        f"animated {format}": (frames(format), RED)
        for format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO")
    },
}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_kind_of_pixel_becomes_the_colour_it_shows_over_white(kind: str):
    data, colour = PIXELS[kind]

    decoded = decode_image(data, name=kind)

    assert decoded.image.mode == "RGB"
    assert decoded.image.getpixel((5, 5)) == pytest.approx(colour, abs=6)
    assert (decoded.width, decoded.height) == decoded.image.size


@pytest.mark.parametrize("format", FORMATS)
def test_the_format_is_that_of_the_content_and_not_of_the_name(format: str):
    data = encoded(noise(), format)

    decoded = decode_image(data, name="picture.txt")

    assert (decoded.format, decoded.width, decoded.height) == (format, *SIZE)


def test_a_phones_jpeg_with_a_second_image_behind_it_is_a_jpeg():
    data = frames("MPO")

    decoded = decode_image(data, name="phone.jpg")

    assert decoded.format == "JPEG"


def test_16_bit_levels_keep_their_order_and_are_not_clipped():
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16)
    data = encoded(Image.fromarray(np.tile(ramp, (8, 1))), "PNG")

    decoded = decode_image(data, name="scan.png")

    assert np.asarray(decoded.image)[0, :, 0].tolist() == list(range(0, 256, 4))


@pytest.mark.parametrize(
    "first", [noise(), plain("RGB", WHITE)], ids=["the first", "a few after a blank one"]
)
def test_no_more_than_the_first_frames_of_a_thousand_are_decoded(first: Image.Image):
    def film(count: int) -> bytes:
        later = [plain("RGB", (0, 0, index % 256)) for index in range(1, count)]
        return encoded(first, "GIF", save_all=True, append_images=later)

    def seconds(data: bytes) -> float:
        began = time.perf_counter()
        decode_image(data, name="film.gif")
        return time.perf_counter() - began

    few, thousand = film(MAX_FRAMES), film(1000)
    assert min(seconds(thousand) for _ in range(5)) < 5 * min(seconds(few) for _ in range(5))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_that_fades_in_is_represented_by_its_frame_of_most_contrast(format: str):
    shown = plain("RGB", WHITE)
    shown.paste(RED, (0, 0, 24, 32))
    film = [Image.blend(plain("RGB", WHITE), shown, share) for share in (0.3, 1.0, 0.6)]
    data = encoded(plain("RGB", WHITE), format, save_all=True, append_images=film)

    decoded = decode_image(data, name="film")

    assert decoded.image.getpixel((5, 5)) == pytest.approx(RED, abs=8)
    assert decoded.image.getpixel((40, 5)) == pytest.approx(WHITE, abs=8)


def pages(*kinds: tuple[tuple[int, int], tuple[int, int, int], int]) -> bytes:
    """Build a TIFF of pages, each of a size, a colour and a type; type -1 leaves the tag out."""
    later = []
    for size, colour, kind in kinds:
        page = plain("RGB", colour, size)
        page.encoderinfo = {"tiffinfo": {254: kind}} if kind >= 0 else {}
        later.append(page)
    return encoded(later[0], "TIFF", save_all=True, append_images=later[1:], **later[0].encoderinfo)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param([((96, 64), RED, 0), ((96, 64), BLUE, 0)], id="pages of a document"),
        pytest.param([((96, 64), RED, -1), ((192, 64), BLUE, -1)], id="a larger page of another shape"),
        pytest.param([((24, 16), BLUE, 1), ((96, 64), RED, 0)], id="a marked thumbnail first"),
        pytest.param([((2, 2), BLUE, 1), ((96, 64), RED, 0)], id="a tiny one"),
        pytest.param([((24, 16), BLUE, -1), ((96, 64), RED, -1)], id="an unmarked thumbnail first"),
        pytest.param([((96, 64), RED, 0), ((48, 32), BLUE, 1)], id="a pyramid"),
    ],
)
def test_a_tiff_is_represented_by_its_first_full_page(kinds: Any):
    decoded = decode_image(pages(*kinds), name="scan.tiff")

    assert (decoded.image.getpixel((9, 9)), decoded.image.size) == (RED, (96, 64))


def shape(colour: tuple[int, int, int], alpha: int = 255) -> Image.Image:
    drawn = plain("RGBA", (0, 0, 0, 0))
    drawn.paste((*colour, alpha), (12, 8, 36, 24))
    return drawn


@pytest.mark.parametrize(
    ("image", "inside", "outside"),
    [
        pytest.param(shape(WHITE), WHITE, (0, 0, 0), id="white on transparent"),
        pytest.param(shape((0, 0, 0)), (0, 0, 0), WHITE, id="black on transparent"),
        pytest.param(shape(RED), RED, WHITE, id="coloured on transparent"),
        pytest.param(shape(WHITE, 0), WHITE, (0, 0, 0), id="a mask that hides all"),
    ],
)
def test_a_shape_on_transparent_is_seen_on_its_backdrop(
    image: Image.Image, inside: tuple[int, int, int], outside: tuple[int, int, int]
):
    decoded = decode_image(encoded(image, "PNG"), name="logo.png").image

    assert (decoded.getpixel((20, 16)), decoded.getpixel((2, 2))) == (inside, outside)


def test_bright_images_with_rounded_corners_stay_on_white():
    card = plain("RGBA", (250, 250, 250, 255))
    card.paste((0, 0, 0, 0), (0, 0, 4, 4))

    assert decode_image(encoded(card, "PNG"), name="card.png").image.getpixel((1, 1)) == WHITE


def profile(gamma: float = 2.2, space: bytes = b"RGB ") -> bytes:
    """Build an ICC profile whose red and green are exchanged, and whose tones have a gamma."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    axes = {b"rXYZ": (0.385, 0.717, 0.097), b"gXYZ": (0.436, 0.222, 0.014), b"bXYZ": (0.143, 0.061, 0.714)}
    tags = {tag: b"XYZ \0\0\0\0" + b"".join(map(number, axis)) for tag, axis in axes.items()}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    tags |= dict.fromkeys((b"kTRC",) if space == b"GRAY" else (b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_colours_are_read_by_their_profile(format: str):
    data = encoded(plain("RGB", (0, 255, 0)), format, icc_profile=profile())

    decoded = decode_image(data, name="exchanged")

    assert decoded.image.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=12)


@pytest.mark.parametrize(
    ("image", "icc", "colour"),
    [
        pytest.param(plain("RGBA", (0, 255, 0, 255)), profile(), (255, 0, 0), id="beside alpha"),
        pytest.param(plain("L", 55), profile(1.0, b"GRAY"), (128, 128, 128), id="linear grey"),
        pytest.param(plain("RGB", RED), SRGB, RED, id="sRGB"),
        pytest.param(plain("RGB", RED), profile()[:200], RED, id="cut short"),
        pytest.param(plain("RGB", RED), b"profile", RED, id="no profile"),
        pytest.param(plain("RGB", RED), profile(1.0, b"GRAY"), RED, id="of other colours"),
    ],
)
def test_a_profile_costs_no_image_and_applies_where_it_fits(
    image: Image.Image, icc: bytes, colour: tuple[int, int, int]
):
    decoded = decode_image(encoded(image, "PNG", icc_profile=icc), name="profile.png")

    assert decoded.image.getpixel((5, 5)) == pytest.approx(colour, abs=3)


@pytest.mark.parametrize("icc", [None, SRGB], ids=["without a profile", "with the profile of sRGB"])
def test_pixels_of_srgb_are_not_changed_by_a_bit(icc: bytes | None):
    data = encoded(noise(), "PNG", icc_profile=icc)

    assert decode_image(data, name="cat.png").image.tobytes() == noise().tobytes()


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_levels_of_a_detector_fill_the_range_of_its_bits(bits: int):
    levels = np.linspace(0, (1 << bits) - 1, 48).astype(np.uint16)
    data = encoded(Image.fromarray(np.tile(levels, (8, 1))), "PNG")

    row = np.asarray(decode_image(data, name="xray.png").image)[0, :, 0].astype(int)

    assert np.abs(row - np.linspace(0, 255, 48)).max() <= 1


def corners(image: Image.Image) -> list[str]:
    """Return the colours of the four corners, clockwise from the top left."""
    names = {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}
    right, bottom = image.width - 4, image.height - 4
    pixels = (image.getpixel(at) for at in ((3, 3), (right, 3), (right, bottom), (3, bottom)))
    return [
        min(names, key=lambda name, pixel=pixel: np.abs(np.subtract(names[name], pixel)).sum())
        for pixel in pixels
    ]


def lying(orientation: int) -> Image.Image:
    """Return the pixels that a camera stores under `orientation`.

    The scene is red, green, blue, white clockwise, 48x32.
    """
    scene = plain("RGB", WHITE)
    for colour, box in ((RED, (0, 0, 24, 16)), (GREEN, (24, 0, 48, 16)), (BLUE, (24, 16, 48, 32))):
        scene.paste(colour, box)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return scene.transpose(undo[orientation]) if orientation in undo else scene


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_image_is_turned_upright(format: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(lying(orientation), format, exif=exif)

    decoded = decode_image(data, name="phone.jpg")

    assert corners(decoded.image) == ["red", "green", "blue", "white"]
    assert (decoded.width, decoded.height) == decoded.image.size == SIZE


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"Exif\0\0garbage garbage", id="no header"),
        pytest.param(b"Exif\0\0II*\0\xff\xff\xff\xff", id="a directory beyond the end"),
        pytest.param(
            b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\x00\x05" * 3, id="a directory cut short"
        ),
        pytest.param(b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x2a\0\0", id="an orientation of 42"),
    ],
)
def test_broken_exif_does_not_cost_a_good_image(format: str, exif: bytes):
    data = encoded(plain("RGB", RED), format, exif=exif)

    decoded = decode_image(data, name="phone.jpg")

    assert decoded.image.getpixel((5, 5)) == pytest.approx(RED, abs=6)


def test_nothing_but_pixels_travels_on():
    data = encoded(noise(), "PNG", icc_profile=b"profile", dpi=(72, 72))

    decoded = decode_image(data, name="cat.png")

    assert decoded.image.info == {}


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        pytest.param((1279, 1279), (1279, 1279), id="not twice as large"),
        pytest.param((1280, 1500), (640, 750), id="twice as large"),
        pytest.param((1930, 2000), (644, 667), id="three times, rounded up"),
    ],
)
def test_a_large_image_is_reduced_and_keeps_its_original_size_on_record(
    size: tuple[int, int], kept: tuple[int, int]
):
    data = encoded(plain("RGBA", (0, 0, 0, 127), size), "PNG")

    decoded = decode_image(data, name="scan.png")

    assert (decoded.width, decoded.height) == size
    assert decoded.image.size == kept
    assert decoded.image.getpixel((9, 9)) == GREY


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        pytest.param((1279, 1500), (1279, 1500), id="not twice as large"),
        pytest.param((1281, 2000), (641, 1000), id="twice as large"),
        pytest.param((2000, 2100), (1000, 1050), id="three times: JPEGs are halved, and halved again"),
        pytest.param((2600, 2600), (650, 650), id="four times"),
        pytest.param((11000, 5400), (1375, 675), id="eight times"),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_tells_the_size_it_had(
    size: tuple[int, int], kept: tuple[int, int]
):
    data = encoded(plain("RGB", RED, size), "JPEG")

    decoded = decode_image(data, name="photo.jpg")

    assert (decoded.width, decoded.height) == size
    assert decoded.image.size == kept
    assert decoded.image.getpixel((9, 9)) == pytest.approx(RED, abs=6)


def test_a_rotated_large_jpeg_reports_its_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(plain("RGB", RED, (2600, 1300)), "JPEG", exif=exif)

    decoded = decode_image(data, name="phone.jpg")

    assert (decoded.width, decoded.height) == (1300, 2600)
    assert decoded.image.size == (650, 1300)


def test_a_large_jpeg_that_ends_too_early_is_rejected_as_well():
    whole = encoded(noise((1400, 1400)), "JPEG")

    for share in (0.5, 0.9, 0.99):
        with pytest.raises(BadImage, match="damaged or cut short"):
            decode_image(whole[: int(share * len(whole))], name="photo.jpg")


BAD = {
    "empty": (b"", "empty_file", "the file is empty"),
    "a web page": (b"<html>404</html>", "not_a_picture", "starts with b'<html>404</html>'"),
    "text": (b"BMW is a car, not a bitmap", "not_a_picture", "supply one of JPEG, PNG"),
    "Netpbm": (
        encoded(noise(), "PPM"),
        "unsupported_format",
        "its format, Netpbm, is not read; export it as",
    ),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9), "unsupported_format", "JPEG XL"),
    "Canon RAW": (b"II*\0\x10\0\0\0CR\2\0" + bytes(9), "unsupported_format", "Canon RAW (CR2)"),
    "Canon's new RAW": (b"\0\0\0\x18ftypcrx " + bytes(9), "unsupported_format", "Canon RAW (CR3)"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9">', "unsupported_format", "SVG"),
    "film": (b"\0\0\0\x18ftypisom" + bytes(9), "unsupported_format", "film (MP4, QuickTime)"),
    "DNG": (tiff((16, 16), 8, 1, bytes(256), t50706=0x0401), "unsupported_format", "develop it to JPEG"),
    "RAW whose pages are previews": (
        tiff((16, 16), 8, 1, bytes(256), t254=1, t330=8),
        "unsupported_format",
        "a camera's RAW",
    ),
    "BMP of two bits": (
        bmp_rle(b"\0\1").replace(b"\1\0\x08\0", b"\1\0\2\0", 1),
        "unsupported_format",
        "depth (2)",
    ),
    "TIFF of unusual pixels": (tiff((16, 16), 8, 32803, bytes(256)), "unsupported_format", "pixel mode"),
    "a header and nothing else": (b"\x89PNG\r\n\x1a\n", "damaged_picture", "fetch or export it again"),
    "one pixel": (encoded(plain("RGB", RED, (1, 1)), "PNG"), "too_small", "1x1 pixels show nothing"),
    "three high": (encoded(plain("RGB", RED, (50, 3)), "PNG"), "too_small", "50x3"),
    "a line": (encoded(plain("L", 9, (405, 4)), "PNG"), "extreme_shape", "405x4"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_images_are_rejected_with_a_reason_and_a_remedy(kind: str):
    data, reason, part = BAD[kind]

    with pytest.raises(BadImage) as refused:
        decode_image(data, name="cat.png")

    assert refused.value.reason == reason
    assert str(refused.value).startswith("cat.png: ")
    assert part in str(refused.value)


@pytest.mark.parametrize("size", [(4, 4), (400, 4), (4, 400)])
def test_an_icon_and_a_banner_pass(size: tuple[int, int]):
    data = encoded(plain("RGB", RED, size), "PNG")

    assert decode_image(data, name="icon.png").image.size == size


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def iso_header(format: str, width: int, height: int) -> bytes:
    side = 64  # which no encoder pads
    data, sized = encoded(noise((side, side)), format), b"ispe\0\0\0\0"
    return data.replace(sized + struct.pack(">II", side, side), sized + struct.pack(">II", width, height))


def jpeg_header(width: int, height: int) -> bytes:
    data, start = bytearray(encoded(noise(), "JPEG")), b"\xff\xc0\0\x11\x08"
    at = data.index(start) + len(start)
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


HUGE = {
    "PNG": png((30_000, 20_000), 8, 2, b"\0" * 100),
    "PNG below Pillow's error": png((10_000, 9_000), 8, 2, b"\0" * 100),
    "GIF": b"GIF89a"
    + struct.pack("<HHBBB", 30_000, 20_000, 0, 0, 0)
    + b",\0\0\0\0\1\0\1\0\0\x02\x02D\x01\0;",
    "GIF frame": b"GIF89a"
    + struct.pack("<HHBBB", 9, 9, 0, 0, 0)
    + b",\0\0\0\0\x30\x75\x20\x4e\0\x02\x02D\x01\0;",
    "BMP": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 30_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)
    + bytes(99),
    "TIFF": tiff((30_000, 20_000), 8, 1, bytes(99)),
    "WebP": webp_header(30_000, 20_000),
    "AVIF": iso_header("AVIF", 15_000, 6_000),
    "HEIF": iso_header("HEIF", 15_000, 5_000),
    "JPEG": jpeg_header(30_000, 20_000),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_claim_of_too_many_pixels_is_rejected_before_one_is_decoded(kind: str):
    began = time.perf_counter()

    told = r"pixels is over [\d,]+(, the most for \w+)?; resize it at the source"
    with pytest.raises(BadImage, match=told) as refused:
        decode_image(HUGE[kind], name="bomb")

    assert refused.value.reason == "too_many_pixels"
    assert time.perf_counter() - began < 0.5


WHOLE = {
    **{format: encoded(noise((192, 192)), format) for format in FORMATS},
    "progressive JPEG": encoded(noise((192, 192)), "JPEG", progressive=True),
    "lossless WebP": encoded(noise((192, 192)), "WEBP", lossless=True),
    "packed TIFF": encoded(noise((192, 192)), "TIFF", compression="tiff_lzw"),
    "JPEG in TIFF": encoded(noise((192, 192)), "TIFF", compression="jpeg"),
    "run-length coded BMP": bmp_rle(b"\x10\x80\0\0" * 16 + b"\0\1"),
    "animated GIF": encoded(noise(), "GIF", save_all=True, append_images=[plain("RGB", RED)]),
}


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """Return the whole PNG with a chunk before its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return WHOLE["PNG"][:33] + chunk + WHOLE["PNG"][33:]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_an_image_cut_short_is_rejected_not_filled_with_grey(kind: str, share: float):
    cut = WHOLE[kind][: int(len(WHOLE[kind]) * share)]

    with pytest.raises(BadImage, match="damaged or cut short") as refused:
        decode_image(cut, name="half")

    assert refused.value.reason == "damaged_picture"


@pytest.mark.parametrize("kind", WHOLE)
def test_an_image_that_lacks_its_last_bytes_is_whole_or_rejected(kind: str):
    whole = decode_image(WHOLE[kind], name="whole").image

    for missing in range(1, 40):
        try:
            decoded = decode_image(WHOLE[kind][:-missing], name="nearly")
        except BadImage:
            continue
        assert decoded.image.tobytes() == whole.tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("size", [(48, 32), (200, 150)], ids=str)
def test_a_jpeg_without_its_end_is_whole_if_its_pixels_are_there(size: tuple[int, int], options: Any):
    data = encoded(noise(size), "JPEG", **options)

    whole, endless = (decode_image(bytes_, name="photo.jpg") for bytes_ in (data, data[:-2]))

    assert endless.image.tobytes() == whole.image.tobytes()
    for missing in (12, 40, len(data) // 8):
        with pytest.raises(BadImage, match="damaged or cut short"):
            decode_image(data[:-missing], name="photo.jpg")


LONG_TEXT = b"Comment\0\0" + zlib.compress(bytes(2 * 2**20))
BESIDE = {
    "a long packed text": with_chunk(b"zTXt", LONG_TEXT),
    "a long international text": with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT[9:]),
    "a long profile": with_chunk(b"iCCP", LONG_TEXT),
    "a wrong checksum of a text": with_chunk(b"tEXt", b"Comment\0a cat").replace(b"a cat", b"a dog"),
    "a wrong checksum of a date": with_chunk(b"tIME", b"\7\xd0\1\1\0\0\0").replace(b"\7\xd0", b"\7\xd1"),
    "an animation without frames": with_chunk(b"acTL", bytes(8)),
    "no end": WHOLE["PNG"][:-12],
    "half an end": WHOLE["PNG"][:-5],
    "no checksum at its end": WHOLE["PNG"][:-14],
}


@pytest.mark.parametrize("kind", BESIDE)
def test_damage_beside_the_pixels_of_a_png_does_not_cost_it(kind: str):
    decoded = decode_image(BESIDE[kind], name="screen.png")

    assert decoded.image.tobytes() == noise((192, 192)).tobytes()


def test_a_run_that_ends_before_the_image_is_full_is_rejected():
    data = bmp_rle(b"\x10\x80\0\0" * 8 + b"\0\1")

    with pytest.raises(BadImage, match="damaged or cut short"):
        decode_image(data, name="half.bmp")


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum():
    data = bytearray(WHOLE["PNG"])
    data[len(data) // 2] ^= 1

    with pytest.raises(BadImage, match="damaged"):
        decode_image(bytes(data), name="flipped.png")


@cache
def seeds() -> tuple[bytes, ...]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = noise((16, 12))
    described = [
        encoded(small, format, exif=exif) for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
    ]
    packed = [encoded(small, "TIFF", compression=name) for name in ("tiff_adobe_deflate", "packbits")]
    pixels = [data for kind, (data, _) in PIXELS.items() if "BMP" in kind or "animated" in kind]
    return (*described, *packed, *pixels)


edits = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=8
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(range(len(seeds()))), edits, st.none() | st.integers(0, 2**12))
def test_no_bytes_raise_anything_but_a_bad_image(
    which: int, changes: list[tuple[int, int, bytes]], length: int | None
):
    data = bytearray(seeds()[which])
    for at, removed, put in changes:
        start = at % (len(data) + 1)
        data[start : start + removed] = put

    try:
        mode = decode_image(bytes(data[:length]), name="mutant").image.mode
    except BadImage:
        mode = "RGB"

    assert mode == "RGB"


@given(st.binary(max_size=200))
def test_random_bytes_are_rejected(data: bytes):
    with pytest.raises(BadImage):
        decode_image(data, name="noise")


def corrupt_tag() -> bytes:
    """Build a valid JPEG with an EXIF tag beyond its end."""
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x0f\0\2\0\0\xff\xff\0\0\xff\xff\0\0\0\0"
    return encoded(plain("RGB", RED), "JPEG", exif=tag)


def test_pillows_warnings_neither_fail_an_image_nor_reach_the_log():
    data = corrupt_tag()
    with pytest.warns(UserWarning, match=r"."), Image.open(BytesIO(data)) as opened:
        opened.getexif().get(0x0112)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        decode_image(data, name="phone.jpg")

    assert heard == []


def test_warnings_stay_quiet_when_many_threads_decode_at_once():
    data = corrupt_tag()

    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda bytes_: decode_image(bytes_, name="phone.jpg"), repeat(data, 200)))

    assert len(decoded) == 200


def test_pillows_settings_are_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, sys.modules["PIL.ImageFile"].LOAD_TRUNCATED_IMAGES)

    decode_image(encoded(noise(), "PNG"), name="cat.png")

    assert before == (Image.MAX_IMAGE_PIXELS, sys.modules["PIL.ImageFile"].LOAD_TRUNCATED_IMAGES)
    assert (Image.MAX_IMAGE_PIXELS or 0) > decode.MAX_PIXELS


def test_a_rejection_survives_the_way_back_from_a_worker_process():
    refusal = BadImage("too_small", "cat.png", "1x1 pixels show nothing")

    returned = pickle.loads(pickle.dumps(refusal))

    assert (returned.reason, str(returned)) == ("too_small", "cat.png: 1x1 pixels show nothing")
