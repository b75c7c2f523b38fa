"""What a user names as a picture becomes an upright RGB image, or an error of one line; nothing is printed, nothing guessed."""

import base64
import contextlib
import http.client
import http.server
import io
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile

from mask_impact.errors import InputError, UsageError, public_address
from mask_impact.prompts import images
from mask_impact.prompts.images import preview, read_picture, read_pictures

REPOSITORY = Path(__file__).parents[2]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
COLOURS = np.array([[RED, GREEN, BLUE], [(255, 255, 0), BLACK, (0, 255, 255)]], np.uint8)  # [2, 3, 3]: no two alike
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
ORIENTATION = ExifTags.Base.Orientation


def pixels(picture):
    return np.asarray(picture.image)


def save(path, image, **options):
    image.save(path, **options)
    return path


def exif(*entries):
    """An EXIF block, written by hand: (tag, type, count, value) with values of at most 4 bytes."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)


def png(width, height, *, depth=8, colour=0, rows=b"\0\0"):
    """A PNG file, written by hand: one that Pillow would not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def refused(source, **options):
    """The message of the InputError that reading raises: one line that names the source."""
    with pytest.raises(InputError) as caught:
        read_picture(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message or not isinstance(source, str | Path)
    return message


# --- formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}), ("a.bmp", {}), ("a.tif", {}), ("a.tiff", {"compression": "tiff_lzw"}), ("a.webp", {"lossless": True}),
        ("a.ppm", {}), ("a.tga", {}), ("a.pcx", {}), ("a.sgi", {}), ("a.jp2", {}), ("a.qoi", {}),
        ("a.ico", {"sizes": [(64, 48)]}),
    ],
)  # fmt: skip
def test_every_pixel_of_a_lossless_format_arrives(tmp_path, name, options):
    path = save(tmp_path / name, Image.fromarray(NOISE), **options)
    for source in (path, str(path)):
        picture = read_picture(source)
        assert (picture.image.mode, picture.source, picture.size) == ("RGB", str(path), (64, 48))
        assert np.array_equal(pixels(picture), NOISE)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif", "a.mpo"])
def test_lossy_formats_arrive_as_nearly_the_same(tmp_path, name):
    smooth = Image.linear_gradient("L").convert("RGB")
    picture = read_picture(save(tmp_path / name, smooth, quality=95))
    assert np.abs(pixels(picture).astype(int) - np.asarray(smooth)).max() <= 6


def test_the_content_decides_and_not_the_ending(tmp_path):
    path = save(tmp_path / "photo.jpg", Image.fromarray(NOISE), format="PNG")
    assert np.array_equal(pixels(read_picture(path)), NOISE)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as file:
        assert file.n_frames == 3
    assert (pixels(read_picture(path)) == RED).all()


def test_palette_one_bit_and_grey_become_their_colours(tmp_path):
    palette = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(pixels(read_picture(save(tmp_path / "p.png", palette))), COLOURS)
    bits = np.array([[True, False, True]])
    one_bit = pixels(read_picture(save(tmp_path / "1.png", Image.fromarray(bits))))
    assert np.array_equal(one_bit, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))
    grey = pixels(read_picture(save(tmp_path / "l.png", Image.fromarray(NOISE[..., 0]))))
    assert np.array_equal(grey, np.repeat(NOISE[..., :1], 3, axis=2))


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk_is_ink_on_white(tmp_path, name):
    """No ink is white, and each ink takes its complement away. An Adobe JPEG has its inks inverted in the file."""
    inks = np.zeros((32, 160, 4), np.uint8)
    for k in range(4):
        inks[:, 32 * (k + 1) : 32 * (k + 2), k] = 255
    found = pixels(read_picture(save(tmp_path / name, Image.fromarray(inks, "CMYK"))))[16, 16::32]
    assert np.abs(found.astype(int) - [WHITE, (0, 255, 255), (255, 0, 255), (255, 255, 0), BLACK]).max() <= 3


def test_other_colour_spaces_are_converted(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 60, 30))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(flat, to_lab)
    for source in (flat.convert("YCbCr"), flat.convert("HSV"), lab, save(tmp_path / "lab.tif", lab)):
        assert np.abs(pixels(read_picture(source)).astype(int) - (200, 60, 30)).max() <= 4


# --- transparency ---------------------------------------------------------------------------------------------------------


def test_transparency_is_composed_on_white(tmp_path):
    """Clear is white whatever colour is below, half clear is half white, opaque is itself."""
    values = np.array([[(255, 0, 0, 0), (0, 0, 255, 51), (10, 20, 30, 255)]], np.uint8)
    image = Image.fromarray(values)
    expected = [[WHITE, (204, 204, 255), (10, 20, 30)]]
    for source in (
        image,
        values,
        save(tmp_path / "a.png", image),
        save(tmp_path / "a.webp", image, lossless=True, exact=True),
    ):
        assert np.array_equal(pixels(read_picture(source)), expected)


def test_transparent_grey_is_composed_on_white(tmp_path):
    image = Image.new("LA", (3, 1))
    for x, pixel in enumerate([(0, 0), (0, 51), (40, 255)]):
        image.putpixel((x, 0), pixel)
    for source in (image, image.convert("La"), save(tmp_path / "a.png", image)):
        assert pixels(read_picture(source))[0, :, 0].tolist() == [255, 204, 40]


def test_transparent_palettes_are_composed_on_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    one = save(tmp_path / "one.gif", image, transparency=1)
    several = save(tmp_path / "several.png", image, transparency=bytes([0, 51, 255]))
    assert np.array_equal(pixels(read_picture(one)), [[RED, WHITE, BLUE]])
    assert np.array_equal(pixels(read_picture(several)), [[WHITE, (204, 255, 204), BLUE]])
    with_alpha = Image.new("PA", (2, 1), (0, 255))
    with_alpha.putpalette([*RED, *GREEN])
    with_alpha.putpixel((1, 0), (1, 0))
    assert np.array_equal(pixels(read_picture(with_alpha)), [[RED, WHITE]])


def test_a_colour_that_counts_as_transparent_becomes_white(tmp_path):
    path = save(tmp_path / "rgb.png", Image.fromarray(COLOURS), transparency=GREEN)
    expected = COLOURS.copy()
    expected[0, 1] = WHITE
    assert np.array_equal(pixels(read_picture(path)), expected)
    deep = save(tmp_path / "deep.png", Image.fromarray(np.array([[40000, 300]], np.uint16)), transparency=300)
    assert pixels(read_picture(deep))[0, :, 0].tolist() == [156, 255]


# --- more than 8 bits of grey ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(tmp_path, suffix):
    """Pillow's own conversion makes white of all above 255. Dark pictures stay dark: the format says what the range is."""
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    picture = read_picture(save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    assert pixels(picture)[0].tolist() == [[v, v, v] for v in (0, 0, 1, 128, 255)]
    dark = read_picture(save(tmp_path / f"dark.{suffix}", Image.fromarray(values[:, :2])))
    assert (pixels(dark) == 0).all()


def test_byte_order_of_sixteen_bits_is_heeded(tmp_path):
    values = np.array([[0x1234, 0xFF00]], np.uint16)
    big = Image.frombytes("I;16B", (2, 1), values.astype(">u2").tobytes())
    for source in (big, save(tmp_path / "a.tif", big)):
        assert pixels(read_picture(source))[0, :, 0].tolist() == [0x12, 0xFF]
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n\x12\x34\xff\xff")
    assert pixels(read_picture(tmp_path / "a.pgm"))[0, :, 0].tolist() == [0x12, 0xFF]


def test_wide_grey_is_scaled_by_the_smallest_range_that_holds_it(tmp_path):
    for values, expected in (
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 255, 256]], np.int32), [0, 0, 1]),
        (np.array([[0, 300, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 1.4, 254.6]], np.float32), [0, 1, 255]),
        (np.array([[0, 511.9, 65535]], np.float32), [0, 1, 255]),
    ):
        image = Image.fromarray(values)
        assert image.mode == ("F" if values.dtype == np.float32 else "I")
        for source in (image, save(tmp_path / "a.tif", image)):
            assert pixels(read_picture(source))[0, :, 0].tolist() == expected


def test_grey_in_no_known_range_is_refused(tmp_path):
    for bad in (-1.0, 65536.0, np.nan, np.inf):
        path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0, bad]], np.float32)))
        assert "not within 0..255 or 0..65535" in refused(path)


# --- orientation ----------------------------------------------------------------------------------------------------------

H, W = 1, 2  # the last row and column of COLOURS
STORED = {  # orientation: where the file's pixel (row, column) is in the upright picture, as EXIF 2.3 defines it
    1: lambda r, c: (r, c), 2: lambda r, c: (r, W - c), 3: lambda r, c: (H - r, W - c), 4: lambda r, c: (H - r, c),
    5: lambda r, c: (c, r), 6: lambda r, c: (c, W - r), 7: lambda r, c: (H - c, W - r), 8: lambda r, c: (H - c, r),
}  # fmt: skip


def stored(orientation, size=1):
    """COLOURS as a camera that is held that way stores them, each pixel a square of `size`."""
    shape = (2, 3) if orientation < 5 else (3, 2)
    array = np.array([[COLOURS[STORED[orientation](r, c)] for c in range(shape[1])] for r in range(shape[0])])
    return Image.fromarray(np.kron(array, np.ones((size, size, 1), np.uint8)))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_pictures_are_turned_upright(tmp_path, suffix):
    """For size, limit and pixels alike; TIFF files are turned by Pillow itself and must not be turned twice."""
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    for orientation in STORED:
        block = exif((ORIENTATION, 3, 1, orientation))
        path = save(tmp_path / f"a.{suffix}", stored(orientation, size=8), exif=block, **options)
        picture = read_picture(path)
        assert picture.size == picture.image.size == (24, 16)
        assert np.abs(pixels(picture)[4::8, 4::8].astype(int) - COLOURS).max() <= 3
        assert read_picture(path, max_resolution=12).image.size == (12, 8)
        with Image.open(path) as opened:
            assert np.array_equal(pixels(read_picture(opened)), pixels(picture))


def test_what_is_given_on_is_not_turned_again(tmp_path):
    """The models' own loaders apply EXIF orientation to the images they get."""
    path = save(tmp_path / "a.png", stored(6), exif=exif((ORIENTATION, 3, 1, 6)), pnginfo=None)
    image = read_picture(path).image
    assert (dict(image.getexif()), image.info) == ({}, {})
    assert np.array_equal(pixels(read_picture(image)), COLOURS)


DAMAGED = {
    "no TIFF header": (b"Exif\0\0" + b"garbage" * 5, 1),
    "cut": (exif((ORIENTATION, 3, 1, 6))[:12], 1),
    "points beyond its end": (exif((ORIENTATION, 3, 1, 6), (0x10F, 2, 999, 5000)), 6),
    "wrong type": (exif((ORIENTATION, 3, 1, 6), (0x10F, 11, 1, 0)), 6),  # Pillow fails to write such a block anew
    "no such orientation": (exif((ORIENTATION, 3, 1, 77)), 1),
    "many orientations": (exif((ORIENTATION, 3, 2, 6)), 6),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_damaged_exif_block_spoils_nothing(tmp_path, recwarn, suffix):
    """The orientation counts where it can be read. Warnings are errors in these tests, and none may come out."""
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    for block, orientation in DAMAGED.values():
        path = save(tmp_path / f"a.{suffix}", stored(orientation, size=8), exif=block, **options)
        picture = read_picture(path)
        assert np.abs(pixels(picture)[4::8, 4::8].astype(int) - COLOURS).max() <= 3
        assert not recwarn.list
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            assert np.array_equal(pixels(read_picture(opened)), pixels(picture))


# --- sizes ----------------------------------------------------------------------------------------------------------------


def test_the_longest_edge_is_limited_and_nothing_enlarged(tmp_path):
    for size, limit, expected in (
        ((1, 1), None, (1, 1)), ((1, 1), 1, (1, 1)), ((1, 1), 100, (1, 1)),
        ((8, 4000), None, (8, 4000)), ((8, 4000), 1000, (2, 1000)), ((8, 4000), 100, (1, 100)),
        ((4000, 8), 4000, (4000, 8)), ((4000, 8), 3999, (3999, 8)), ((4000, 8), 1, (1, 1)),
        ((300, 200), 150, (150, 100)), ((300, 200), 301, (300, 200)),
    ):  # fmt: skip
        assert_limited(tmp_path, size, limit, expected)


@pytest.mark.slow
def test_a_picture_of_49_megapixels_is_limited_too(tmp_path):
    assert_limited(tmp_path, (7000, 7000), 64, (64, 64))


def assert_limited(tmp_path, size, limit, expected):
    path = save(tmp_path / "a.png", Image.new("RGB", size, (10, 200, 30)), compress_level=1)
    picture = read_picture(path, max_resolution=limit)
    assert (picture.size, picture.image.size) == (size, expected)
    assert (pixels(picture) == (10, 200, 30)).all()


def test_scaling_down_is_lanczos_on_the_composed_picture():
    """Transparent pixels are white before neighbours are mixed, so that what is below them doesn't bleed in."""
    expected = Image.fromarray(NOISE).resize((32, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(read_picture(NOISE, max_resolution=32)), np.asarray(expected))
    clear = np.dstack([NOISE, np.zeros((48, 64), np.uint8)])
    assert (pixels(read_picture(clear, max_resolution=10)) == 255).all()


def test_a_limit_below_one_is_a_usage_error():
    for limit in (0, -5):
        with pytest.raises(UsageError, match=f"^`max_image_resolution` must be at least 1, not {limit}$"):
            read_picture(NOISE, max_resolution=limit)
        with pytest.raises(UsageError):
            read_pictures([NOISE], max_resolution=limit)


# --- objects --------------------------------------------------------------------------------------------------------------


def test_an_image_given_is_left_as_it_is():
    noise, grey = Image.fromarray(NOISE).convert("RGBA"), Image.new("LA", (64, 48), (9, 9))
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F", "I;16"):
        image = grey if mode == "LA" else noise.convert(mode)
        image.info["exif"] = exif((ORIENTATION, 3, 1, 6))
        before = (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette())
        picture = read_picture(image, max_resolution=20)
        assert (picture.source, picture.size, picture.image.size) == ("image", (48, 64), (15, 20))
        assert (image.mode, image.size, image.tobytes(), dict(image.info), image.getpalette()) == before


def test_the_picture_is_an_image_of_its_own():
    """What is changed afterwards, in the image or array given, is not changed in the picture."""
    image, array = Image.new("RGB", (4, 3), RED), np.full((3, 4, 3), RED, np.uint8)
    pictures = read_pictures([image, array])
    image.paste(GREEN, (0, 0, 4, 3))
    array[:] = 0
    assert all((pixels(picture) == RED).all() for picture in pictures)


def test_of_an_animation_given_the_frame_it_is_at_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN)]
    path = save(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as animation:
        animation.seek(1)
        assert (pixels(read_picture(animation)) == GREEN).all()
        assert animation.tell() == 1


def test_arrays_are_pictures_as_they_are():
    expected = np.repeat(NOISE[..., :1], 3, axis=2)
    for grey in (NOISE[..., 0], NOISE[..., :1]):  # not contiguous
        assert np.array_equal(pixels(read_picture(grey)), expected)
    picture = read_picture(NOISE)
    assert (picture.source, picture.size) == ("image", (64, 48))
    assert np.array_equal(pixels(picture), NOISE)
    assert np.array_equal(pixels(read_picture(NOISE[::-1, ::2])), NOISE[::-1, ::2])
    mask = NOISE[..., 0] > 127
    assert np.array_equal(pixels(read_picture(mask))[..., 2], mask * 255)


def test_other_arrays_are_refused_with_what_is_accepted():
    for array in (
        NOISE / 255.0, NOISE.astype(np.int64), NOISE.astype(np.uint16), NOISE > 9, NOISE[0, 0], NOISE[None], NOISE[..., :2],
        np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), bool), np.array(3, np.uint8),
    ):  # fmt: skip
        message = refused(array)
        assert f"array of {array.dtype} {list(array.shape)}" in message
        assert "uint8 [height, width], [height, width, 1 | 3 | 4] and bool [height, width] are accepted" in message


def test_other_objects_are_refused_with_what_is_accepted():
    accepted = "an image is a path, a URL, a PIL image or a numpy array"
    for source in (None, 7, b"a.png", [[1, 2]], io.BytesIO()):
        assert refused(source) == f"{accepted}, not {type(source).__name__}"


def test_an_image_without_pixels_is_refused():
    assert refused(Image.new("RGB", (0, 5))) == "image 'image' has no pixels: its size is 0 x 5"


def test_several_pictures_keep_their_order(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (30, 20), RED))
    first, second = read_pictures([path, NOISE], max_resolution=16)
    assert (first.source, first.image.size, second.source, second.image.size) == (
        str(path),
        (16, 11),
        "image",
        (16, 12),
    )
    assert read_pictures([]) == ()


# --- files that can't be read ---------------------------------------------------------------------------------------------


def test_missing_files_and_folders_are_named(tmp_path):
    assert "does not exist; a PNG, JPEG" in refused(tmp_path / "none.png")
    assert "is a folder" in refused(tmp_path)
    assert "does not exist" in refused("")
    save(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    assert "cannot be opened: Not a directory" in refused(tmp_path / "a.png" / "b.png")
    assert "cannot be opened: embedded null byte" in refused("a\0b.png")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """For root, whom tests may run as, every file can be opened."""

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open_file", forbidden)
    assert "cannot be opened: Permission denied" in refused(save(tmp_path / "a.png", Image.new("RGB", (2, 2))))


def test_what_is_no_image_is_refused_with_what_is_accepted(tmp_path):
    for content in (b"", b"just text\n" * 100, b"\x89PNG\r\n\x1a\n", b"<html></html>", bytes(5000)):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        message = refused(path)
        assert message.endswith("is in no format that can be read, or damaged; " + images.ACCEPTED)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(NOISE))
    whole = path.read_bytes()
    for part in (0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert "cannot be read: " in refused(path)


def test_an_image_given_that_was_never_loaded_is_loaded_whole(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(NOISE))
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as lazy:
        assert "image 'image' cannot be read: " in refused(lazy)


def test_whatever_pillow_raises_on_damage_is_an_input_error(tmp_path):
    """Each file with bytes changed here and there: it is read, or refused in one line."""
    rng = np.random.default_rng(1)
    messages, n_read = [], 0
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif", "tga", "ico"):
        path = save(tmp_path / f"a.{suffix}", Image.fromarray(NOISE))
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(damaged), 120), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                n_read += read_picture(path, max_resolution=8).image.mode == "RGB"
            except InputError as error:
                messages.append(str(error))
    assert n_read + len(messages) == 200
    assert min(n_read, len(messages)) > 25
    assert all(str(tmp_path) in message and "\n" not in message for message in messages)


def test_any_exception_of_a_plug_in_is_an_input_error(tmp_path, monkeypatch):
    raised = []

    def fail(*_):
        raise raised[-1]

    path = save(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for kind in (OSError, SyntaxError, ValueError, struct.error, EOFError, MemoryError, IndexError, KeyError):
        raised.append(kind("first line\nsecond line"))
        assert "cannot be read: " in refused(path)
        raised.append(kind())
        assert f"cannot be read: {kind.__name__}" in refused(path)


def test_control_c_while_reading_is_no_input_error(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = save(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_picture(path)


@pytest.mark.parametrize("edge", [9_500, 100_000])
def test_a_decompression_bomb_is_refused_with_its_pixels_and_the_limit(tmp_path, recwarn, edge):
    """Above the limit Pillow warns, above twice the limit it raises; both are refused before anything is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.png").write_bytes(png(edge, edge))
    message = refused(tmp_path / "bomb.png", max_resolution=10)
    assert f"has {edge * edge:,} pixels; {limit:,} at most are accepted" in message
    assert (Image.MAX_IMAGE_PIXELS, recwarn.list) == (limit, [])


def test_a_picture_at_the_limit_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    assert np.array_equal(pixels(read_picture(path)), COLOURS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert "has 6 pixels; 5 at most" in refused(path)


def test_zero_width_in_a_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0, 5))
    assert "is in no format that can be read, or damaged" in refused(tmp_path / "a.png")


def test_postscript_is_not_run(tmp_path):
    """Pillow would hand the file to Ghostscript, an interpreter of programs."""
    path = save(tmp_path / "a.eps", Image.fromarray(NOISE))
    assert refused(path) == f"image '{path}' is PostScript, which is not run; {images.ACCEPTED}"


def test_nothing_is_printed_whatever_is_read(tmp_path):
    """In a process with Python's own filters and no logging set up: Pillow warns, and logs, on each of these files."""
    save(tmp_path / "exif.jpg", Image.new("RGB", (8, 8)), exif=DAMAGED["points beyond its end"][0])
    (tmp_path / "bomb.png").write_bytes(png(9_500, 9_500))
    tiff = bytearray(save(tmp_path / "samples.tif", Image.new("RGB", (4, 4))).read_bytes())
    (ifd,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(ifd + 2, ifd + 2 + 12 * struct.unpack_from("<H", tiff, ifd)[0], 12):
        if struct.unpack_from("<H", tiff, entry)[0] == 277:  # samples per pixel
            struct.pack_into("<H", tiff, entry + 8, 500)
    (tmp_path / "samples.tif").write_bytes(tiff)
    code = (
        "import sys\n"
        "from mask_impact.prompts.images import read_picture, InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        print(read_picture(path).size)\n"
        "    except InputError:\n        print('refused')\n"
    )
    paths = [str(tmp_path / name) for name in ("exif.jpg", "bomb.png", "samples.tif")]
    process = subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (process.stdout.splitlines(), process.stderr) == (["(8, 8)", "refused", "refused"], "")
    loud = [sys.executable, "-c", "import sys\nfrom PIL import Image\nImage.open(sys.argv[1])", paths[2]]
    process = subprocess.run(loud, capture_output=True, text=True, timeout=60, check=False)
    assert "More samples per pixel" in process.stderr, "this file no longer shows that anything is held back"


# --- addresses ------------------------------------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    """What a test puts in `answers`: path -> (status, headers, body). A body of None never comes."""

    answers: dict = {}  # noqa: RUF012 - replaced for each test
    asked: list = []  # noqa: RUF012
    released = threading.Event()

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        status, headers, body = self.answers.get(self.path, (404, {}, b"nothing here"))
        if body is None:
            self.released.wait(20)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    """A server on this machine; yields its address."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    Site.answers, Site.asked, Site.released = {}, [], threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Site.released.set()
        server.shutdown()
        thread.join()


def encoded(array=NOISE):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_nothing_is_fetched_without_permission(monkeypatch):
    monkeypatch.setattr(images.urllib.request, "build_opener", lambda *_: pytest.fail("something was fetched"))
    for url in ("http://127.0.0.1:9/a.png", "HTTPS://example.org/a.png"):
        assert "nothing is fetched unless `allow_remote` is given" in refused(url)
        with pytest.raises(InputError, match="`allow_remote`"):
            read_pictures([NOISE, url])


def test_an_address_is_read_where_it_is_permitted(site):
    """Spaces and letters outside ASCII are encoded; what is encoded already stays as it is."""
    for path, asked in (
        ("/a.png", "/a.png"),
        ("/b%20c.png?d=e%26f", "/b%20c.png?d=e%26f"),
        ("/ä b.png?ö=ü", "/%C3%A4%20b.png?%C3%B6=%C3%BC"),
    ):
        Site.answers[asked] = (200, {}, encoded())
        for url in (site + path, site.replace("http", "HTTP") + path):
            picture = read_picture(url, allow_remote=True, max_resolution=32)
            assert (picture.size, picture.image.size) == ((64, 48), (32, 24))
            assert picture.source == public_address(url)
        whole = read_pictures([site + path], allow_remote=True)[0]
        assert np.array_equal(pixels(whole), NOISE)
        assert {headers["User-Agent"] for _, headers in Site.asked} == {"mask-impact"}


def test_redirects_are_followed(site):
    for status in (301, 302, 303, 307, 308):
        Site.answers |= {"/old": (status, {"Location": "/new"}, b""), "/new": (200, {}, encoded())}
        assert np.array_equal(pixels(read_picture(site + "/old", allow_remote=True)), NOISE)


def test_redirects_lead_to_http_only(site, tmp_path):
    for target in ("ftp://127.0.0.1/a.png", "file://{here}", "data:image/png;base64,AAAA"):
        target = target.format(here=save(tmp_path / "a.png", Image.new("RGB", (2, 2))))
        Site.answers |= {"/older": (302, {"Location": "/old"}, b""), "/old": (302, {"Location": target}, b"")}
        assert target in refused(site + "/older", allow_remote=True)
        assert target in refused(site + "/old", allow_remote=True)


def test_a_redirect_s_own_body_is_not_read(site, monkeypatch):
    """However long it is: the library would read it whole."""
    n_bytes = {}

    def counting(read):
        def counted(response, *length):
            data = read(response, *length)
            n_bytes[response.status] = n_bytes.get(response.status, 0) + len(data)
            return data

        return counted

    for name in ("read", "read1"):
        monkeypatch.setattr(http.client.HTTPResponse, name, counting(getattr(http.client.HTTPResponse, name)))
    Site.answers |= {"/old": (302, {"Location": "/new"}, b"x" * 100), "/new": (200, {}, encoded())}
    assert read_picture(site + "/old", allow_remote=True).size == (64, 48)
    assert n_bytes == {302: 0, 200: len(encoded())}


def test_redirects_in_a_circle_end(site):
    Site.answers["/old"] = (302, {"Location": "/old"}, b"")
    assert "HTTP status 302, The HTTP server returned a redirect error" in refused(site + "/old", allow_remote=True)
    assert len(Site.asked) <= 11


def test_an_error_of_the_server_is_named(site):
    assert refused(site + "/none.png", allow_remote=True).endswith("cannot be fetched: HTTP status 404, Not Found")
    Site.answers["/a.png"] = (503, {}, b"")
    assert "HTTP status 503, Service Unavailable" in refused(site + "/a.png", allow_remote=True)


def test_a_page_in_place_of_an_image_is_refused(site):
    Site.answers["/a.png"] = (200, {"Content-Type": "image/png"}, b"<html>Please log in</html>")
    assert "is in no format that can be read" in refused(site + "/a.png", allow_remote=True)


@pytest.mark.parametrize("announced", [None, "true", "less", "more"])
def test_what_is_too_long_is_refused_whatever_is_announced(site, monkeypatch, announced):
    body = encoded()
    monkeypatch.setattr(images, "MAX_REMOTE_BYTES", len(body))
    Site.answers["/fits.png"] = (200, {"Content-Length": str(len(body))}, body)
    assert read_picture(site + "/fits.png", allow_remote=True).size == (64, 48)
    monkeypatch.setattr(images, "MAX_REMOTE_BYTES", len(body) - 1)
    length = {"true": len(body), "less": 50, "more": 10**12}.get(announced)
    Site.answers["/a.png"] = (200, {} if length is None else {"Content-Length": str(length)}, body)
    if announced in ("true", "more"):
        monkeypatch.setattr(http.client.HTTPResponse, "read1", lambda *_: pytest.fail("it was read all the same"))
    # Of a body that is longer than announced, no more than announced is taken.
    expected = "cannot be read" if announced == "less" else "MiB that are fetched at most"
    assert expected in refused(site + "/a.png", allow_remote=True)


def test_fetching_has_the_limits_that_are_documented():
    assert images.MAX_REMOTE_BYTES == 64 * 2**20
    assert (images.TIMEOUT_S, images.TOTAL_S) == (30, 60)


def test_a_connection_that_ends_early_is_refused(site):
    body = encoded()
    Site.answers["/a.png"] = (200, {"Content-Length": str(len(body))}, body[: len(body) // 2])
    assert "cannot be read: " in refused(site + "/a.png", allow_remote=True)


def test_a_silent_server_is_not_waited_for(site, monkeypatch):
    monkeypatch.setattr(images, "TIMEOUT_S", 0.2)
    Site.answers["/a.png"] = (200, {}, None)
    start = time.monotonic()
    assert refused(site + "/a.png", allow_remote=True).endswith("cannot be fetched: no answer for 0.2 s")
    assert time.monotonic() - start < 10


def test_an_address_that_can_t_be_one_is_refused():
    for url in ("http://", "http:///a.png", "http://[::1/a.png", "http://127.0.0.1:port/a.png"):
        assert "cannot be fetched: " in refused(url, allow_remote=True)


def test_a_server_that_is_not_there_is_named(site, monkeypatch):
    monkeypatch.setattr(images.urllib.request.HTTPHandler, "http_open", lambda *_: _refuse_connection())
    assert "cannot be fetched: Connection refused" in refused(site + "/a.png", allow_remote=True)


def _refuse_connection():
    raise images.urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))


def test_other_schemes_are_refused_with_and_without_permission():
    for scheme in ("file:///etc/hosts", "ftp://example.org/a.png", "data:image/png,AAAA", "s3://b/a.png"):
        for allow_remote in (False, True):
            message = refused(scheme, allow_remote=allow_remote)
            assert "of URLs only those that begin with http:// or https://" in message


def test_a_data_url_is_not_shown_whole():
    with pytest.raises(InputError) as caught:
        read_picture("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 1000


def test_an_existing_file_whose_name_looks_like_a_scheme_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("data:a.png"), Image.fromarray(COLOURS))
    assert np.array_equal(pixels(read_picture("data:a.png")), COLOURS)


# --- previews -------------------------------------------------------------------------------------------------------------


def test_a_preview_is_a_small_jpeg_of_the_same_shape():
    for size, edge, expected in (
        ((3000, 1500), 1024, (1024, 512)),
        ((8, 4000), 1024, (2, 1024)),
        ((4000, 8), 10, (10, 1)),
        ((50, 40), 1024, (50, 40)),
    ):
        data = preview(Image.new("RGB", size, (200, 60, 30)), edge)
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", expected)
            assert np.abs(np.asarray(image).astype(int) - (200, 60, 30)).max() <= 3


def test_a_preview_keeps_fine_colours_and_is_the_same_each_time():
    """Chroma is not subsampled: red and blue columns of one pixel stay red and blue."""
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = RED, BLUE
    image = Image.fromarray(stripes)
    data = preview(image)
    assert data == preview(image)
    with Image.open(io.BytesIO(data)) as file:
        assert np.abs(np.asarray(file).astype(int) - stripes).mean() < 15
        standard = io.BytesIO()
        image.save(standard, "JPEG", quality=90, subsampling=0)
        with Image.open(standard) as reference:
            assert file.quantization == reference.quantization
    assert len(preview(image, 8)) < len(data)


# --- addresses with more than who reads a result should know, and servers that never end -----------------------------------

SECRET = "SECRET"


@pytest.mark.parametrize("rest", [f"?sig={SECRET}", f"#{SECRET}", f"?a=b c {SECRET}"])
def test_of_an_address_only_scheme_host_and_path_are_told(site, rest):
    url = f"{site.replace('://', f'://me:{SECRET}@')}/a.png{rest}"
    said = f"{site}/a.png (the rest of the address is left out)"
    asked = "/a.png" + rest.partition("#")[0].replace(" ", "%20")
    Site.answers[asked] = (200, {}, encoded())
    assert read_picture(url, allow_remote=True).source == said
    (_, headers) = Site.asked[-1]
    assert headers["Authorization"] == f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
    for answer, options in (
        ((404, {}, b""), {"allow_remote": True}),
        ((200, {}, b"no picture"), {"allow_remote": True}),
        ((302, {"Location": f"ftp://you:{SECRET}@127.0.0.1/a?{SECRET}"}, b""), {"allow_remote": True}),
        ((200, {}, b""), {}),
    ):
        Site.answers[asked] = answer
        with pytest.raises(InputError) as caught:
            read_picture(url, **options)
        assert SECRET not in str(caught.value)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:SECRET@127.0.0.1/a", "http://127.0.0.1:SECRET/a", "http://[SECRET/a?SECRET"]
)
def test_a_password_is_not_told_where_the_address_can_t_be_used(url, monkeypatch):
    monkeypatch.setattr(images.urllib.request, "urlopen", None)
    monkeypatch.setattr(images, "TIMEOUT_S", 0.2)
    with pytest.raises(InputError) as caught:
        read_picture(url, allow_remote=True)
    assert "me:SECRET" not in str(caught.value)
    assert "?SECRET" not in str(caught.value)


@pytest.mark.parametrize("where", ["status", "headers", "chunks", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_left_in_time(where, monkeypatch):
    """Each byte in time, the whole never."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(images, "TOTAL_S", 0.3)
    begins = {"status": b"", "headers": b"HTTP/1.1 200 OK\r\n", "body": b"HTTP/1.1 200 OK\r\n\r\n"}
    begins["chunks"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    over = threading.Event()

    def serve(listening):
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                connection.sendall(begins[where])
                while not over.wait(0.02):
                    connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        assert refused(url, allow_remote=True).endswith("cannot be fetched: it is not there whole after 0.3 s")
        over.set()
        thread.join()
