"""Reads and writes pictures: converts files and arrays to RGB pictures and tensors, and writes pictures to files.

image = load_image("cat.tif")
save_image(to_pil(1 - to_tensor([image]))[0], "negative.png", {"instruction": "..."})
"""

from __future__ import annotations

import os
import secrets
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from reasonbrain.errors import UserError
from reasonbrain.utils.colour import decode, to_srgb

MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs
OUTPUT_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}

# Allow-list of Pillow's decoders: others start programs (EPS) or are rarely tested. JPEG includes MPO. HEIF needs the
# package pillow-heif.
INPUT_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "TGA",
    "ICO",
    "QOI",
    "PCX",
    "HEIF",
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # bytes 8 to 12 of a HEIC file
TEXT_CHUNKS, PROFILE_CHUNKS = (b"tEXt", b"zTXt", b"iTXt"), (b"iCCP",)  # of a PNG
UPRIGHT = {  # EXIF orientation -> the operation that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: str | Path | bytes | Image.Image | np.ndarray) -> Image.Image:
    """Loads a picture as 8-bit RGB, as an image viewer shows it.

    EXIF orientation and colour profile, or the gamma of a PNG, are applied: the result is upright and in sRGB. Damaged
    metadata is ignored. Transparent pictures are composited over white. Of an animation, the first frame is read.
    16-bit pictures are scaled from 0..65535, floating-point ones from the smallest of 0..1, 0..255 and 0..65535 that
    contains their values; 32-bit integers and larger floats from 0 to their maximum.

    source: a file, an encoded picture (bytes), a PIL picture, or an array [H, W] or [H, W, C] with C of 1, 3 or 4
    (RGBA), of type bool, uint8, uint16, or float in 0..1.

    Raises UserError for a picture that is missing, a folder, empty, truncated, in none of ``INPUT_FORMATS``, without
    pixels, or of more than ``MAX_PIXELS`` pixels (read from the header, before decoding)."""
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the array")
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the picture")
    if not isinstance(source, (str, Path, bytes)):
        raise UserError(f"a picture must be a path, bytes, a PIL image or a numpy array, not {type(source).__name__}")
    name = "the picture" if isinstance(source, bytes) else f"image '{source}'"
    try:
        if not isinstance(source, bytes):
            _check_file(Path(source), name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked below
            with _open(source) as image:
                return _to_rgb(image, name)
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except Image.UnidentifiedImageError:
        if _first_bytes(source, 12)[8:] in HEIF_BRANDS:
            raise UserError(f"{name} is HEIC, which needs the package pillow-heif: pip install pillow-heif") from None
        raise UserError(f"{name} is not a picture in any format known here (PNG, JPEG, WebP, TIFF, ...)") from None
    except OSError as e:
        raise UserError(f"{name} cannot be read: {e.strerror or e}") from None
    except ValueError as e:  # raised by some of Pillow's decoders for a broken header
        raise UserError(f"{name} is damaged or truncated: {e}") from None


def _first_bytes(source: str | Path | bytes, count: int | None = None) -> bytes:
    if isinstance(source, bytes):
        return source[:count]
    with Path(source).open("rb") as file:
        return file.read(-1 if count is None else count)


def _open(source: str | Path | bytes) -> Image.Image:
    """Opens a picture without decoding it. Text and profile chunks of a PNG that Pillow refuses to read are removed."""
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_decoders())
    except (ValueError, SyntaxError):
        if _first_bytes(source, 8) != b"\x89PNG\r\n\x1a\n":
            raise
        data = _first_bytes(source)
        try:
            return Image.open(BytesIO(_without_chunks(data, TEXT_CHUNKS)), formats=("PNG",))
        except (ValueError, SyntaxError):
            return Image.open(BytesIO(_without_chunks(data, TEXT_CHUNKS + PROFILE_CHUNKS)), formats=("PNG",))


@cache
def _decoders() -> list[str]:
    """The formats of ``INPUT_FORMATS`` whose decoders are installed."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return [name for name in INPUT_FORMATS if name in Image.OPEN]


def _without_chunks(png: bytes, kinds: tuple[bytes, ...]) -> bytes:
    """A PNG file without chunks of these kinds (PNG specification, section 5: length, type, data, checksum)."""
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in kinds:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if EXIF is missing or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises exceptions of many types for damaged EXIF
        return 1


def _check_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a picture")
    if not path.exists():
        raise UserError(f"{name} does not exist")
    if not path.is_file():
        raise UserError(f"{name} is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{name} is an empty file")


def upright_size(source: Path | bytes) -> tuple[int, int] | None:
    """(width, height) of the picture that ``load_image`` would return, from the header alone; None if it cannot be
    read. EXIF stored after the pixels of a PNG is not read."""
    try:
        if not isinstance(source, bytes):
            _check_file(source, "")  # opening a FIFO would wait for a writer
        with _open(source) as image:
            try:
                exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the whole picture
                # Pillow's size of a TIFF is that of the upright picture
                turned = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            except Exception:  # damaged EXIF, as in ``_orientation``
                turned = False
            return image.size[::-1] if turned else image.size
    except Exception:  # load_image raises the error
        return None


def _too_large(name: str) -> UserError:
    return UserError(f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down first")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decodes a picture and converts it as ``load_image`` documents. ``name``: what error messages call it."""
    if not image.width or not image.height:
        raise UserError(f"{name} has no pixels: it is {image.width}x{image.height}")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    try:
        image = decode(image)
        profile = image.info.get("icc_profile")
        if (operation := UPRIGHT.get(_orientation(image))) is not None:
            image = image.transpose(operation)
        image = to_srgb(image, profile)
        image.info = {}  # orientation and profile must not be applied twice
        return image
    except Image.DecompressionBombError:  # raised for a picture inside the file (ICO)
        raise _too_large(name) from None
    except Exception as e:
        raise UserError(f"{name} is damaged or truncated: {' '.join(str(e).split()) or type(e).__name__}") from None


def load_alpha(source: Path | bytes) -> Image.Image:
    """The opacity of a picture that ``load_image`` has read, upright, mode "L"; 255 everywhere if it is opaque."""
    with _open(source) as image:
        image = decode(image)
        alpha = image.convert("RGBA").getchannel("A")
        operation = UPRIGHT.get(_orientation(image))
        return alpha if operation is None else alpha.transpose(operation)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(f"an array of shape {shape} is not a picture; use [H, W] or [H, W, C] with C of 1, 3 or 4")
    if not array.size:
        raise UserError(f"an array of shape {shape} has no pixels")
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array / 257).round().astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails too
            raise UserError(f"a float array must lie in 0..1, not {array.min():g}..{array.max():g}")
        array = (array.astype(np.float64) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype} is not a picture; choose from bool, uint8, uint16, float in 0..1")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures of one size as float32 [B, 3, H, W] in 0..1."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in 0..1 as 8-bit pictures [B, H, W, 3]; values outside 0..1 are clipped."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in 0..1 as RGB pictures; values outside 0..1 are clipped.

    Raises ValueError for NaN or infinity, which clipping would turn into black or white."""
    if not torch.isfinite(images).all():
        raise ValueError("the picture contains NaN or infinity")
    return [Image.fromarray(picture) for picture in to_uint8(images)]


def check_output(path: str | Path) -> None:
    """Checks, before a long computation, that ``save_image`` can write to the path. Leaves no files.

    Raises UserError if the suffix is unknown, the folder is missing or read-only, or the path is a folder, a device
    or a pipe."""
    path = Path(path)
    name = f"output '{path}'"
    if path.suffix.lower() not in OUTPUT_FORMATS:
        raise UserError(f"{name} must end in one of {', '.join(OUTPUT_FORMATS)}")
    try:
        if path.is_dir():
            raise UserError(f"{name} is a folder; use a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{name} is a device or a pipe; use a file")
        if not path.parent.is_dir():
            raise UserError(f"{name}: folder '{path.parent}' does not exist")
        with tempfile.TemporaryFile(dir=path.parent):  # the only reliable test, for root and on any file system
            pass
    except OSError as e:
        raise UserError(f"{name} cannot be written: {e.strerror or e}") from None


def save_image(image: Image.Image, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the picture atomically and replaces an existing file. metadata: text chunks of a PNG; ignored in other
    formats.

    Raises UserError like ``check_output``, and if writing fails."""
    check_output(path)
    path = Path(path)
    file_format = OUTPUT_FORMATS[path.suffix.lower()]
    options: dict[str, object] = {"quality": 95} if file_format in ("JPEG", "WEBP") else {}
    if file_format == "PNG" and metadata:
        options["pnginfo"] = info = PngInfo()
        for key, value in metadata.items():
            info.add_text(key, value)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        image.save(temporary, file_format, **options)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"output '{path}' cannot be written: {e.strerror or e}") from None
    finally:
        with suppress(OSError):  # it is not there, or on a disk that has become read-only
            temporary.unlink()
