"""Pictures of every mode against values computed by hand; broken files; tensors; atomic writing."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from reasonbrain.errors import UserError
from reasonbrain.utils.images import (
    check_output,
    load_image,
    save_image,
    to_pil,
    to_tensor,
    to_uint8,
    upright_size,
)


def pixels(image):
    assert image.mode == "RGB"
    return [tuple(int(v) for v in p) for p in np.asarray(image).reshape(-1, 3)]


def one(mode, color):
    return Image.new(mode, (1, 1), color)


def palette(transparency=None):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    "image, expected",
    [
        (one("1", 1), (255, 255, 255)),
        (one("1", 0), (0, 0, 0)),
        (one("L", 77), (77, 77, 77)),
        (one("LA", (100, 255)), (100, 100, 100)),
        (one("LA", (100, 0)), (255, 255, 255)),
        (one("LA", (0, 51)), (204, 204, 204)),  # 20 % of black over white
        (one("La", (0, 51)), (204, 204, 204)),
        (one("RGB", (1, 2, 3)), (1, 2, 3)),
        (one("RGBX", (1, 2, 3, 9)), (1, 2, 3)),
        (one("RGBA", (255, 0, 0, 255)), (255, 0, 0)),
        (one("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (one("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (one("RGBa", (51, 0, 0, 51)), (255, 204, 204)),  # the same with colours premultiplied
        (one("CMYK", (0, 0, 0, 0)), (255, 255, 255)),
        (one("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (one("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        (one("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (one("YCbCr", (128, 128, 128)), (128, 128, 128)),
        (one("HSV", (0, 255, 255)), (255, 0, 0)),
        (one("I;16", 65535), (255, 255, 255)),
        (one("I;16", 257 * 40), (40, 40, 40)),
        (one("I;16B", 257 * 40), (40, 40, 40)),
        (one("I", 65535), (255, 255, 255)),
        (one("I", 257 * 40), (40, 40, 40)),
        (one("I", 200), (1, 1, 1)),  # a dark 16-bit picture, not a bright 8-bit one
        (one("I", -5), (0, 0, 0)),
        (one("F", 1.0), (255, 255, 255)),
        (one("F", 0.2), (51, 51, 51)),
        (one("F", 40.0), (40, 40, 40)),
        (one("F", 257.0 * 40), (40, 40, 40)),
        (one("F", float("nan")), (0, 0, 0)),
    ],
)
def test_every_mode_is_converted_as_it_is_displayed(image, expected):
    assert pixels(load_image(image)) == [expected]


def test_values_beyond_16_bits_are_scaled_to_their_maximum():
    assert pixels(load_image(Image.fromarray(np.array([[0, 100000, 200000]], np.int32)))) == [
        (0,) * 3,
        (128,) * 3,
        (255,) * 3,
    ]
    assert pixels(load_image(Image.fromarray(np.array([[0.5, np.inf]], np.float32)))) == [(128,) * 3, (255,) * 3]


def test_palette_with_and_without_transparency():
    assert pixels(load_image(palette())) == [(10, 20, 30), (200, 100, 50)]
    assert pixels(load_image(palette(0))) == [(255, 255, 255), (200, 100, 50)]
    assert pixels(load_image(palette(bytes([255, 51])))) == [(10, 20, 30), (244, 224, 214)]


def test_a_transparent_colour_of_an_rgb_or_grey_png_becomes_white(tmp_path):
    Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8)).save(tmp_path / "rgb.png", transparency=(9, 9, 9))
    Image.fromarray(np.array([[9, 1]], np.uint8)).save(tmp_path / "grey.png", transparency=9)
    assert pixels(load_image(tmp_path / "rgb.png")) == [(255, 255, 255), (1, 2, 3)]
    assert pixels(load_image(tmp_path / "grey.png")) == [(255, 255, 255), (1, 1, 1)]


@pytest.mark.parametrize(
    "name, mode",
    [("16.png", "I;16"), ("16.tif", "I;16"), ("16.pgm", "I"), ("f.tif", "F"), ("1.png", "1"), ("cmyk.tif", "CMYK")],
)
def test_the_same_from_files(tmp_path, name, mode):
    color = {"I;16": 257 * 40, "I": 257 * 40, "F": 40.0, "1": 1, "CMYK": (255, 0, 0, 0)}[mode]
    Image.new(mode, (3, 2), color).save(tmp_path / name)
    expected = {"1": (255, 255, 255), "CMYK": (0, 255, 255)}.get(mode, (40, 40, 40))
    assert pixels(load_image(str(tmp_path / name))) == [expected] * 6


def test_a_cmyk_jpeg_looks_right(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    r, g, b = pixels(load_image(tmp_path / "a.jpg"))[0]
    assert r > 250 and g < 5 and b < 5


UPRIGHT = [[1, 2, 3], [4, 5, 6]]
STORED = {  # the pixels of UPRIGHT as stored with each EXIF orientation
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    image = Image.fromarray(np.array(STORED[orientation], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, lossless=True)
    found = load_image(tmp_path / name)
    assert np.asarray(found)[..., 0].tolist() == UPRIGHT and upright_size(tmp_path / name) == found.size


def wide_gamut():
    """A profile other than sRGB: sRGB with its red and green colorants exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.tif", "p.webp", "turned.png", "clear.png"])
def test_colour_profiles_are_applied_and_dropped(tmp_path, name):
    image = Image.new("RGB", (16, 16), (230, 40, 40))
    if name == "clear.png":
        image.putalpha(255)
    exif = Image.Exif()
    exif[0x0112] = 6 if name == "turned.png" else 1
    options = {"quality": 100} if name.endswith(("jpg", "webp")) else {}
    image.save(tmp_path / name, icc_profile=wide_gamut(), exif=exif, **options)
    seen = load_image(tmp_path / name)
    # red and green exchanged: what the file calls red is seen as green
    assert np.allclose(pixels(seen), (40, 230, 40), atol=4)
    assert not seen.info
    assert pixels(load_image(seen)) == pixels(seen)


def test_a_profile_of_srgb_changes_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), noise)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour_type, row, *chunks):
    """A PNG of one row, ``row`` its bytes."""
    width = len(row) * 8 // (bits * {0: 1, 2: 3}[colour_type])
    head = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "bits, row, clear, expected",
    [
        (1, bytes([0b01111111]), 0, [255, 255]),
        (1, bytes([0b01111111]), 1, [0, 255]),
        (2, bytes([0b10011111]), 2, [255, 85]),
        (4, bytes([0x81]), 8, [255, 17]),
        (16, struct.pack(">HH", 257 * 40, 257 * 40 + 1), 257 * 40, [255, 40]),
    ],
)
def test_the_transparent_grey_of_a_png_of_any_depth_becomes_white(bits, row, clear, expected):
    data = png(bits, 0, row, chunk(b"tRNS", struct.pack(">H", clear)))
    assert [value[0] for value in pixels(load_image(data))[:2]] == expected


@pytest.mark.parametrize(
    "chunks, expected",
    [
        ([(b"gAMA", 100_000)], 127),  # linear: 255 * (55 / 255) ** (1 / 2.2)
        ([(b"gAMA", 45_455)], 55),  # sRGB's
        ([(b"gAMA", 45_000)], 55),
        ([(b"gAMA", 0)], 55),
        ([(b"gAMA", 1)], 55),
        ([(b"sRGB", None), (b"gAMA", 100_000)], 55),
    ],
)
@pytest.mark.parametrize("colour_type", [0, 2])
def test_the_gamma_of_a_png_is_applied_once(colour_type, chunks, expected):
    made = [chunk(kind, b"\0" if value is None else struct.pack(">I", value)) for kind, value in chunks]
    seen = load_image(png(8, colour_type, bytes([55, 55, 55]), *made))
    assert {value for pixel in pixels(seen) for value in pixel} == {expected}
    assert not seen.info


def test_a_tiff_of_16_bits_whose_zero_is_white_is_inverted(tmp_path):
    for name, photometric, expected in (("a.tif", 1, 40), ("b.tif", 0, 215)):
        grey = Image.fromarray(np.array([[257 * 40]], np.uint16))
        grey.save(tmp_path / name, tiffinfo={262: photometric})
        data = bytearray((tmp_path / name).read_bytes())
        with Image.open(tmp_path / name) as image:
            at = data.index(struct.pack("<HHIHH", 262, 3, 1, image.tag_v2[262], 0))
        data[at + 8] = photometric  # Pillow does not write 0
        assert pixels(load_image(bytes(data))) == [(expected,) * 3]


def with_chunk(path, made):
    """Inserts a chunk after the header of a PNG."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + made + data[33:])


@pytest.mark.parametrize("what", ["exif", "profile", "profile of another space", "compressed text", "png profile"])
def test_damaged_metadata_is_ignored(tmp_path, what):
    path, image = tmp_path / "a.png", Image.new("RGB", (3, 2), (10, 20, 30))
    if what == "exif":
        path = tmp_path / "a.jpg"
        image.save(path, quality=100, exif=b"Exif\0\0XX*\0\x08\0\0\0\xff\xff")
    elif what == "profile":
        image.save(path, icc_profile=b"no profile at all")
    elif what == "profile of another space":
        image.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    else:
        image.save(path)
        bomb = zlib.compress(bytes(70 << 20))
        with_chunk(
            path, chunk(b"zTXt", b"a\0\0" + bomb) if what == "compressed text" else chunk(b"iCCP", b"a\0\0" + bomb)
        )
    assert np.allclose(pixels(load_image(path)), (10, 20, 30), atol=2)
    assert upright_size(path) == (3, 2)


def test_a_valid_text_chunk_is_accepted(tmp_path):
    info = PngInfo()
    info.add_text("instruction", "What if it snowed?", zip=True)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=info)
    assert pixels(load_image(tmp_path / "a.png")) == [(1, 2, 3)]


def test_only_listed_formats_are_decoded(tmp_path, monkeypatch):
    """Decoding an EPS would start Ghostscript."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    with pytest.raises(UserError, match="not a picture in any format known here"):
        load_image(tmp_path / "a.png")
    assert not (tmp_path / "started").exists()


def test_heic_names_the_package_that_reads_it():
    with pytest.raises(UserError, match="pip install pillow-heif"):
        load_image(b"\0\0\0\x18ftypheic" + bytes(100))


def test_the_size_of_a_pipe_is_unknown(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert upright_size(tmp_path / "a.png") is None


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(pixels(load_image(tmp_path / "a.gif"))) == {(255, 0, 0)}


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.array([[True, False]]), [(255,) * 3, (0,) * 3]),
        (np.array([[7, 8]], np.uint8), [(7,) * 3, (8,) * 3]),
        (np.array([[[7], [8]]], np.uint8), [(7,) * 3, (8,) * 3]),
        (np.array([[[1, 2, 3]]], np.uint8), [(1, 2, 3)]),
        (np.array([[[255, 0, 0, 51]]], np.uint8), [(255, 204, 204)]),
        (np.array([[[0, 65535, 257]]], np.uint16), [(0, 255, 1)]),
        (np.array([[[0.0, 1.0, 0.2]]]), [(0, 255, 51)]),
        (np.array([[[0.0, 1.0, 0.2]]], np.float32), [(0, 255, 51)]),
    ],
)
def test_arrays(array, expected):
    assert pixels(load_image(array)) == expected


@pytest.mark.parametrize(
    "source, words",
    [
        (np.zeros((2, 2, 2), np.uint8), "2x2x2"),
        (np.zeros(5, np.uint8), "[H, W]"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.full((2, 2), 2.0), "0..1"),
        (np.full((2, 2), np.nan), "0..1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (Image.new("RGB", (0, 5)), "0x5"),
        ([1, 2], "list"),
        (None, "NoneType"),
    ],
)
def test_invalid_pictures_are_one_line_errors(source, words):
    with pytest.raises(UserError) as e:
        load_image(source)
    assert words in str(e.value) and "\n" not in str(e.value)


def png_header(width, height):
    """A PNG that ends after its header and the start of its data."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (ihdr, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def encoded(file_format):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, file_format)
    return buffer.getvalue()


FILES = {
    "empty.png": (b"", "empty"),
    "text.png": (b"hello, I am a text", "not a picture"),
    "cut.png": (encoded("PNG")[:3000], "truncated"),
    "cut.jpg": (encoded("JPEG")[:1500], "truncated"),
    "cut.gif": (encoded("GIF")[:1500], "truncated"),
    "cut.tif": (encoded("TIFF")[:1500], "cut.tif"),
    "cut.webp": (encoded("WEBP")[:1500], "cut.webp"),
    "cut.bmp": (encoded("BMP")[:1500], "truncated"),
    "bomb.png": (png_header(20000, 20000), "179 million pixels"),
    "bomb_more.png": (png_header(13378, 13378), "179 million pixels"),  # just above the limit
    "zero.png": (png_header(0, 7), "zero.png"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_a_one_line_error_that_names_it(tmp_path, name):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        load_image(tmp_path / name)
    assert words in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_the_limit_holds_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb.png").write_bytes(png_header(20000, 20000))
    with pytest.raises(UserError, match="179 million pixels"):
        load_image(tmp_path / "bomb.png")


def test_below_the_limit_pillow_warns_in_vain(tmp_path):
    """13000 x 13000 is 169 million: no refusal for its size, and no warning either, not even as an error."""
    (tmp_path / "big.png").write_bytes(png_header(13000, 13000))
    code = (
        "import sys; from reasonbrain.utils.images import load_image; from reasonbrain.errors import UserError\n"
        "try: load_image(sys.argv[1])\nexcept UserError as e: print(e)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::PIL.Image.DecompressionBombWarning", "-c", code, str(tmp_path / "big.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "truncated" in run.stdout and "Bomb" not in run.stderr, run


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_image(tmp_path / "no.png")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="is not a file"):
        load_image(os.devnull)
    with pytest.raises(UserError, match="aaa"):
        load_image("a" * 5000)


# --- tensors ---


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_to_tensor_and_back_is_exact():
    images = [noise(5, 3, 0), noise(5, 3, 1)]
    tensor = to_tensor(images)
    assert tensor.shape == (2, 3, 3, 5) and tensor.dtype == torch.float32
    assert tensor[1, 2, 0, 4] == images[1].getpixel((4, 0))[2] / 255
    assert [pixels(i) for i in to_pil(tensor)] == [pixels(i) for i in images]


def test_to_uint8_is_the_picture_itself():
    """Channels last, clipped, and the same whatever the precision that holds 8 bits."""
    images = [noise(5, 3, 0), noise(5, 3, 1)]
    array = to_uint8(to_tensor(images))
    assert array.shape == (2, 3, 5, 3) and array.dtype == np.uint8
    assert all((a == np.asarray(i)).all() for a, i in zip(array, images, strict=True))
    assert (to_uint8(to_tensor(images).double() * 3 - 1) == (np.stack(images) * 3.0 - 255).clip(0, 255)).all()


def test_to_pil_clips_and_rounds_and_refuses_nan():
    tensor = torch.tensor([-1.0, 0.4999, 3.0]).view(1, 3, 1, 1)
    assert pixels(to_pil(tensor)[0]) == [(0, 127, 255)]
    assert pixels(to_pil(tensor.bfloat16())[0]) == [(0, 128, 255)]  # bfloat16 holds 0.5 there
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN"):
            to_pil(torch.full((1, 3, 2, 2), bad))


# --- writing ---


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
def test_save_writes_the_format_of_the_suffix_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    save_image(image, path, {"instruction": "melt"})
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_allclose(np.asarray(load_image(path)), np.asarray(image), atol=4)


def test_png_metadata_is_kept_in_any_script(tmp_path):
    save_image(noise(4, 4), tmp_path / "a.png", {"instruction": "fondre la glace, 融化", "seed": "7"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"instruction": "fondre la glace, 融化", "seed": "7"}


def test_a_saved_file_has_the_usual_permissions_and_replaces_the_old(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save_image(noise(4, 4), path)
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert pixels(load_image(path)) == pixels(noise(4, 4))


def test_a_failed_save_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="cannot be written"):
        save_image(Image.new("RGBA", (4, 4)), path)  # JPEG has no alpha: Pillow raises while writing
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.jpg"]

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        save_image(noise(4, 4), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.xyz", ".png, .jpg"),
        ("a", ".png, .jpg"),
        ("no/a.png", "does not exist"),
        ("d.png", "is a folder"),
        ("pipe.png", "a device or a pipe"),
        ("device.png", "a device or a pipe"),
    ],
)
def test_an_impossible_output_is_refused_beforehand(tmp_path, name, words):
    (tmp_path / "d.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/full")
    for act in (check_output, lambda path: save_image(noise(2, 2), path)):
        with pytest.raises(UserError) as e:
            act(tmp_path / name)
        assert words in str(e.value) and name in str(e.value) and "\n" not in str(e.value)
    assert sorted(os.listdir(tmp_path)) == ["d.png", "device.png", "pipe.png"]


def test_check_output_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")
def test_a_read_only_folder_is_refused():
    with pytest.raises(UserError, match="cannot be written"):
        check_output("/proc/self/a.png")
