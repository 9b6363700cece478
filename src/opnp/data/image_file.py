"""One image out of a file or out of bytes, decoded completely, or the reason why not."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from opnp.errors import DataFileError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_ENDINGS", "decoded_image"]

IMAGE_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Endings of the files that count as images in a folder, in any case, whether this Pillow can read them or not."""

_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its name. Others are rare, and the reader of EPS starts a program."""

_DEEP = ("I", "F")
"""Modes of Pillow with more than 8 bits a channel begin with these letters."""


def decoded_image(content: Path | bytes) -> "Image":
    """Return an image in RGB, 8 bits a channel; orientation tags are not applied, the first frame of several.

    Args:
        content: The file, or what it holds.

    Raises:
        DataFileError: If it is no image, is cut off, or has more bits; the text is the reason alone.
        MissingExtraError: If Pillow is not installed.

    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=formats) as image:
            mode = image.mode
            if not mode.startswith(_DEEP):
                # Through RGBA, as Pillow asks for palettes with transparency.
                return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataFileError(_no_image(content)) from error
    except OSError as error:  # of the system: without the path, which the name stands for
        raise DataFileError(error.strerror or _first_line(error)) from error
    except Exception as error:  # decoders raise whatever they come upon in damaged files
        raise DataFileError(_first_line(error)) from error
    raise DataFileError(f"more than 8 bits a channel, mode {mode}: store it with 8 bits")


def _no_image(content: Path | bytes) -> str:
    """Return why Pillow finds no image."""
    from PIL import Image

    ending = content.suffix.lower() if isinstance(content, Path) else ""
    if ending in IMAGE_ENDINGS and ending not in Image.registered_extensions():
        return f"the Pillow that is installed reads no {ending} files"
    return "no image"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
