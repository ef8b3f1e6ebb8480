"""Files that definitions and jobs name, opened only where the service's settings allow it."""

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from services.features.domain.file_roots import WANT, FileRoots


class BeyondRoots(ValueError):
    """Files that lie under no folder of ours; the text says what was wanted and what came."""


def open_files(uri: str, roots: FileRoots) -> tuple[Any, str]:
    """Return the file system of a URI and the path on it; raises `BeyondRoots`, and what fsspec raises.

    What was allowed when it was written down may not be any more: the setting may be younger.
    """
    for wrong in roots.check(uri, "uri"):
        raise BeyondRoots(wrong.description)
    files, path = fsspec.core.url_to_fs(uri)
    return files, path


def without_links(files: Any, path: str, roots: FileRoots) -> str:
    """Return the path without links; raises `BeyondRoots` where a folder of ours leads out of itself."""
    if not isinstance(files, LocalFileSystem):
        return path
    real = roots.real_path(path)
    if real is None:
        raise BeyondRoots(f"{WANT}, got a link that leads elsewhere")
    return str(real)
