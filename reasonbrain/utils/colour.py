"""Decodes pictures, and converts their colours from any Pillow mode to 8-bit sRGB.

image = decode(Image.open("cat.tif"))
rgb = to_srgb(image, image.info.get("icc_profile"))
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

WHITE_IS_ZERO = 0  # of TIFF's tag PhotometricInterpretation
SCALES = {"L;2": 85, "L;4": 17}  # by which Pillow scales the values of a PNG of few bits, by its raw mode
DISPLAY_GAMMA = 2.2  # of an sRGB display, as libpng has it


def decode(image: Image.Image) -> Image.Image:
    """Reads the pixels of an opened picture as its format defines them: Pillow inverts a TIFF whose 0 is white only up
    to 8 bits, and compares the transparent grey of a PNG of 2, 4 or 16 bits with values that it has scaled."""
    raw = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    if isinstance(image, TiffImageFile):
        image.filename = ""  # Pillow maps an uncompressed file by its name, with the sides of the upright picture
    image.load()
    info, clear = image.info, image.info.get("transparency")
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            image = Image.fromarray(65535 - np.asarray(image, dtype=np.uint16))
    elif clear is not None and raw in SCALES:
        info["transparency"] = clear * SCALES[raw]
    elif clear is not None and image.mode == "I;16":
        alpha = Image.fromarray((np.asarray(image) != clear) * np.uint8(255))
        image = Image.merge("LA", (_to_8_bits(image), alpha))
    image.info = info
    return image


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of any mode as RGB in sRGB, composited over white. ``profile``: its ICC profile; None for sRGB, or for
    the gamma that a PNG states."""
    gamma = None if "srgb" in image.info else image.info.get("gamma")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_8_bits(image)
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    if image.mode == "P" and image.has_transparency_data:  # Pillow converts other palettes correctly
        image = image.convert("RGBA")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    image = _apply_profile(image, profile)
    # as libpng: nothing is done for a gamma near the display's, and none beyond these limits is right
    if not profile and gamma and abs(gamma * DISPLAY_GAMMA - 1) > 0.05 and 0.1 < gamma < 10:
        image = image.point([round(255 * (v / 255) ** (1 / (gamma * DISPLAY_GAMMA))) for v in range(256)] * 3)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts a picture to RGB, from its colour profile to sRGB, and drops transparency. A profile that is damaged or
    does not fit the picture is ignored; one that is sRGB changes nothing."""
    plain = image if image.mode in ("L", "CMYK", "RGB") else image.convert("L" if image.mode == "LA" else "RGB")
    if profile:
        transform = _srgb_transform(bytes(profile), plain.mode)
        if transform is not None:
            return ImageCms.applyTransform(plain, transform)  # type: ignore[return-value]  # None only in place
    return plain.convert("RGB")


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB. None if it cannot be built, or if no colour changes by more than 1 of
    255."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "RGB":
            return transform
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(lattice), transform)).astype(int) - lattice
        return transform if np.abs(moved).max() > 1 else None
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
        return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts a greyscale picture of more than 8 bits per pixel to mode L."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=np.inf)
    largest = values[np.isfinite(values)].max(initial=0.0)
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((t for t in tops if largest <= t), largest)
    return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
