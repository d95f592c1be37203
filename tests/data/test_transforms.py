"""Pixels against float64 oracles, and every kind of image file."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_distillation.data.transforms import BrokenImageError, Transform, center_crop, decode, resize_area

SIDES = st.integers(1, 70)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_image(height, width, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def area_oracle(image, size):
    """Each pixel's mean over its own rectangle, summed pixel by pixel in float64."""
    height, width, channels = image.shape
    result = np.zeros((size, size, channels))
    for row in range(size):
        for column in range(size):
            top, bottom = row * height / size, (row + 1) * height / size
            left, right = column * width / size, (column + 1) * width / size
            for i in range(int(top), min(int(np.ceil(bottom)), height)):
                for j in range(int(left), min(int(np.ceil(right)), width)):
                    share = (min(bottom, i + 1) - max(top, i)) * (min(right, j + 1) - max(left, j))
                    result[row, column] += max(share, 0) * image[i, j]
    return result * size * size / (height * width)


def bilinear_oracle(image, size):
    """Pillow's definition: a triangle centered on each output pixel, as wide as the scale, at least two pixels."""

    def weights(length):
        scale = length / size
        support = max(scale, 1.0)
        centers = (np.arange(size) + 0.5) * scale
        shares = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centers[:, None]) / support)
        return shares / shares.sum(axis=1, keepdims=True)

    return np.einsum("rh,hwc,sw->rsc", weights(image.shape[0]), image.astype(np.float64), weights(image.shape[1]))


@given(SIDES, SIDES, st.integers(1, 24), st.integers(0, 100))
def test_area_resizing_is_the_exact_mean(height, width, size, seed):
    image = random_image(height, width, seed)
    assert np.abs(resize_area(image, size) - area_oracle(image, size)).max() <= 0.5 + 1e-3


@given(SIDES, SIDES, st.integers(1, 80), st.integers(0, 100))
def test_bilinear_resizing_is_pillows(height, width, size, seed):
    """Up to one level, as Pillow rounds to 8 bits between the two directions."""
    image = random_image(height, width, seed)
    resized = Transform(size, crop=False)(encode(Image.fromarray(image)))
    assert np.abs(resized - bilinear_oracle(image, size)).max() <= 1.01


@given(SIDES, SIDES)
def test_center_crop_takes_the_central_square(height, width):
    rows, columns = np.mgrid[:height, :width]
    square = np.asarray(center_crop(Image.fromarray(np.stack([rows, columns, rows], -1).astype(np.uint8))))
    side = min(height, width)
    assert square.shape == (side, side, 3)
    assert tuple(square[0, 0, :2]) == (height // 2 - side // 2, width // 2 - side // 2)
    assert tuple(square[-1, -1, :2]) == (height // 2 - side // 2 + side - 1, width // 2 - side // 2 + side - 1)


def test_an_image_of_the_right_size_does_not_change():
    image = random_image(32, 32)
    for resize in ("area", "bilinear"):
        np.testing.assert_array_equal(Transform(32, resize=resize)(encode(Image.fromarray(image))), image)


def test_images_are_cropped_before_they_are_resized():
    image = random_image(40, 64)
    encoded = encode(Image.fromarray(image))
    np.testing.assert_array_equal(Transform(8, resize="area")(encoded), resize_area(image[:, 12:52], 8))
    np.testing.assert_array_equal(Transform(8, crop=False, resize="area")(encoded), resize_area(image, 8))
    gray = Transform(8, channels=1)(encoded)
    assert gray.shape == (8, 8, 1) == Transform(8, channels=1).image_shape


# Each of these is the same picture, its left half red (or dark), its right half blue (or bright).
HALVES = np.zeros((20, 30, 3), np.uint8)
HALVES[:, :15, 0] = HALVES[:, 15:, 2] = 255
COLOR = Image.fromarray(HALVES)
GRAY = Image.fromarray(np.where(HALVES[..., 2] > 0, 200, 40).astype(np.uint8))


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.fromarray(np.where(np.arange(20)[:, None] < 10, 255, 0).repeat(30, 1).astype(np.uint8)))
    return image


def rotated(image):
    """An image stored upside down, with its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encode(image.rotate(180), "JPEG", quality=100, subsampling=0, exif=exif)


KINDS = {
    "png": encode(COLOR),
    "bmp": encode(COLOR, "BMP"),
    "webp": encode(COLOR, "WEBP", lossless=True),
    "jpeg": encode(COLOR, "JPEG", quality=100, subsampling=0),
    "progressive jpeg": encode(COLOR, "JPEG", quality=100, subsampling=0, progressive=True),
    "cmyk jpeg": encode(COLOR.convert("CMYK"), "JPEG", quality=100),
    "two pictures in a jpeg": encode(COLOR, "MPO", save_all=True, append_images=[GRAY.convert("RGB")], quality=100),
    "turned jpeg": rotated(COLOR),
    "palette": encode(COLOR.convert("P", palette=Image.Palette.ADAPTIVE)),
    "palette webp": encode(COLOR.convert("RGB"), "WEBP", lossless=True),
    "opaque alpha": encode(COLOR.convert("RGBA")),
    "gif": encode(COLOR, "GIF"),
    "tiff": encode(COLOR, "TIFF", compression="tiff_lzw"),
    **{
        f"animated {format.lower()}": encode(COLOR, format, save_all=True, append_images=[GRAY.convert("RGB")])
        for format in ("GIF", "PNG", "WEBP", "TIFF")
    },
}
GRAYS = {
    "gray png": encode(GRAY),
    "gray jpeg": encode(GRAY, "JPEG", quality=100),
    "16 bit": encode(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257)),
    "gray alpha": encode(GRAY.convert("LA")),
    "gray bmp": encode(GRAY, "BMP"),
    "gray gif": encode(GRAY, "GIF"),
    "16 bit tiff": encode(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_color_files_are_decoded_to_rgb(kind):
    image = np.asarray(decode(KINDS[kind])).astype(int)
    assert image.shape == HALVES.shape
    away_from_the_edge = np.r_[0:12, 18:30]
    assert np.abs(image - HALVES)[:, away_from_the_edge].max() <= 12


@pytest.mark.parametrize("kind", GRAYS)
def test_gray_files_are_decoded_to_gray(kind):
    image = np.asarray(decode(GRAYS[kind])).astype(int)
    assert np.abs(image - np.asarray(GRAY)[..., None]).max() <= 4
    assert decode(GRAYS[kind], gray=True).mode == "L"


def test_one_bit_pixels_become_black_and_white():
    image = np.asarray(decode(encode(GRAY.point(lambda level: 255 * (level > 100)).convert("1"))))
    assert image.shape == (20, 30, 3) and sorted(np.unique(image)) == [0, 255]


def test_transparency_is_laid_over_white():
    palette = COLOR.convert("P", palette=Image.Palette.ADAPTIVE)
    red = palette.getpixel((0, 0))
    image = np.asarray(decode(encode(palette, transparency=red)))
    np.testing.assert_array_equal(image[:, :15], 255)
    np.testing.assert_array_equal(image[:, 15:], HALVES[:, 15:])
    for encoded in (encode(with_alpha(COLOR)), encode(with_alpha(COLOR), "WEBP", lossless=True)):
        image = np.asarray(decode(encoded))
        np.testing.assert_array_equal(image[:10], HALVES[:10])
        np.testing.assert_array_equal(image[10:], 255)


def png(bits, color_type, row, transparent):
    """A PNG with one row of pixels, one of them transparent."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, color_type, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(bytes(1) + row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks.items())


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (png(1, 0, bytes([0b01000000]), struct.pack(">H", 1)), [0, 0, 0]),
        (png(2, 0, bytes([0b01100000]), struct.pack(">H", 2)), [85, 85, 85]),
        (png(4, 0, bytes([0x3A]), struct.pack(">H", 10)), [51, 51, 51]),
        (png(8, 0, bytes([3, 10]), struct.pack(">H", 10)), [3, 3, 3]),
        (png(16, 0, struct.pack(">2H", 0x8001, 0x8000), struct.pack(">H", 0x8000)), [128, 128, 128]),
        (png(8, 2, bytes([1, 2, 3, 4, 5, 6]), struct.pack(">3H", 4, 5, 6)), [1, 2, 3]),
        (
            png(
                16,
                2,
                struct.pack(">6H", 256, 512, 768, 0x80FF, 0x8001, 0x8002),
                struct.pack(">3H", 0x80FF, 0x8001, 0x8002),
            ),
            [1, 2, 3],
        ),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_a_transparent_color_in_as_many_bits_as_the_file_has(encoded, expected):
    assert np.asarray(decode(encoded)).tolist() == [[expected, [255, 255, 255]]]


@pytest.mark.parametrize("alpha", [0, 128])
def test_a_bitmap_whose_fourth_byte_is_0_is_opaque(alpha):
    pixels = bytes([1, 2, 3, 0, 4, 5, 6, alpha])
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 0, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    encoded = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header + pixels
    expected = [[3, 2, 1], [6, 5, 4]] if alpha == 0 else [[255, 255, 255], [130, 130, 129]]
    np.testing.assert_allclose(np.asarray(decode(encoded))[0], expected, atol=1)


def test_pixels_of_32_bits_are_refused():
    with pytest.raises(BrokenImageError, match="its pixels have 32 bits, whose range is unknown"):
        decode(encode(Image.new("F", (2, 2), 0.5), "TIFF"))


@pytest.mark.parametrize("error", [MemoryError, lambda: OSError("out of memory when reading image file")])
def test_too_little_memory_does_not_count_as_damage(monkeypatch, error):
    def load(*_):
        raise error()

    monkeypatch.setattr(Image.Image, "convert", load)
    with pytest.raises(MemoryError):
        decode(KINDS["png"])


def test_published_preprocessing_ignores_exif_orientation():
    turned = np.asarray(decode(KINDS["turned jpeg"], upright=False)).astype(int)
    assert np.abs(turned - HALVES[::-1, ::-1])[:, :10].max() <= 12


def test_broken_images_say_why():
    for encoded, message in {
        b"": "it is empty",
        b"<html>not found</html>": "not a PNG, JPEG, WebP, BMP, GIF or TIFF file",
        KINDS["jpeg"][:-100]: "truncated",
    }.items():
        with pytest.raises(BrokenImageError, match=message):
            decode(encoded)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8, "resize": "lanczos"}])
def test_transforms_refuse_impossible_sizes_and_filters(options):
    with pytest.raises(ValueError, match="must be"):
        Transform(**options)
