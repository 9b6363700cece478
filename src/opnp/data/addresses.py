"""Images at an address that Arrow knows, such as ``s3://bucket/folder``, as samples without labels."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from opnp.data.images import IMAGE_ENDINGS, decoded_image, is_content
from opnp.data.samples import SampleKind, require_pillow
from opnp.errors import DataFileError, EmptyDataError, require_installed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImagesAtAddress", "opened_place"]

_KINDS = "s3://, gs://, abfs://, hdfs:// or file://"
_OWN_SERVER = "s3://bucket/folder?scheme=http&endpoint_override=host:9000"


@dataclass(frozen=True, eq=False, slots=True)
class ImagesAtAddress:
    """Images in a folder at an address, at any depth, in the order of their paths. Each is read when it is asked for.

    Attributes:
        address: The folder.
        names: Paths of the images in it.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (3, 2)).save(f"{folder}/b.png")
        ...     images = ImagesAtAddress.of(f"file://{folder}")
        ...     images.names, images.sample(0).size
        (('b.png',), (3, 2))

    """

    address: str
    names: tuple[str, ...]
    labels: Sequence[int] | None = None
    class_names: Sequence[str] | None = None
    kind: ClassVar[SampleKind] = "image"

    @classmethod
    def of(cls, address: str) -> "ImagesAtAddress":
        """Return the images of a folder.

        Raises:
            EmptyDataError: If there is no image.
            DataFileError: If the folder cannot be listed.
            MissingExtraError: If pyarrow or Pillow is not installed.

        """
        require_pillow()
        require_installed("Images at an address need", "pyarrow", extra="bench")
        import pyarrow as pa
        from pyarrow import fs

        filesystem, folder = opened_place(address)
        try:
            found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataFileError(f"{address} cannot be listed ({type(error).__name__}: {reason}).") from error
        paths = [PurePosixPath(each.path).relative_to(folder) for each in found if each.is_file]
        names = sorted(str(path) for path in paths if _is_image(path))
        if not names:
            raise EmptyDataError(f"{address} holds no image.")
        return cls(address, tuple(names))

    @property
    def path(self) -> Path:
        """The address, as far as a path can be one; for messages."""
        return Path(self.address)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def sample(self, index: int) -> "Image":
        """Return an image of 8 bits a channel, decoded; orientation tags are not applied.

        Raises:
            DataFileError: If the file is no readable image; its text is the reason alone.

        """
        return decoded_image(self._content(index))

    def digest(self) -> str:
        """Return the SHA-256 over the paths within the folder and the content of all files."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            digest.update(f"{name}\0{hashlib.sha256(self._content(index)).hexdigest()}\n".encode())
        return digest.hexdigest()

    def _content(self, index: int) -> bytes:
        filesystem, folder = opened_place(self.address)
        try:
            with filesystem.open_input_stream(f"{folder}/{self.names[index]}") as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise DataFileError(str(error).partition("\n")[0]) from error
        return content


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS and all(map(is_content, path.parts))


@lru_cache(maxsize=8)
def opened_place(place: str) -> tuple[Any, str]:
    """Return the file system of Arrow of a path or an address, and the path in it, which does not end in a slash.

    A server of one's own that speaks S3 is ``s3://bucket/folder?scheme=http&endpoint_override=host:9000``.

    Raises:
        DataFileError: If Arrow opens no such address.

    Example:
        >>> opened_place("file:///data/folder/")[1], opened_place("/data")[1]
        ('/data/folder', '/data')

    """
    import pyarrow as pa
    from pyarrow import fs

    if re.search(r"endpoint_override=https?:/(?!/)", place):  # a path holds no two slashes in a row
        raise DataFileError(f"{place} names a server in a way that no path can hold: write `{_OWN_SERVER}`.")
    try:
        filesystem, path = (fs.LocalFileSystem(), place) if "://" not in place else fs.FileSystem.from_uri(place)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise DataFileError(
            f"{place} cannot be opened ({type(error).__name__}: {reason}): give a path, or an address that begins with "
            f"{_KINDS}."
        ) from error
    return filesystem, path.rstrip("/")
