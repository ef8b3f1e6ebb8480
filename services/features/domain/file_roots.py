"""Which files definitions and jobs may name: those under folders that the settings list, and nothing else of the host."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.errors import Violation, echo
from services.common.text_check import check_text

URI_LIMIT_CHARS: Final = 2_000
SCHEMES: Final = ("file", "s3", "gs")
# Which folders those are is no business of who guesses.
WANT: Final = "want a URI under one of the folders of the service's INTERLOCK_FEATURES_FILE_ROOTS"
_SCHEME: Final = re.compile(r"([a-z0-9+.-]+)://(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class FileRoots:
    """Folders, as URIs, under which batch sources are read and results of jobs are written."""

    uris: Sequence[str] = ()

    def check(self, uri: str, path: str) -> Iterator[Violation]:
        """Yield what is wrong with a URI of files, which may be a pattern; where links lead is seen when it is opened."""
        yield from check_text(uri, path, URI_LIMIT_CHARS, required=True)
        if not uri:
            return
        want = wrong_form(uri)
        if want is None and not any(_is_under(uri, root) for root in self.uris):
            want = WANT
        if want is not None:
            yield Violation(path, f"{want}, got {echo(uri)}")

    def real_path(self, path: str) -> Path | None:
        """Return what a path of this host is called without links; None when that lies under no folder of ours."""
        try:
            real = Path(path).resolve()
            roots = [Path(root.removeprefix("file://")).resolve() for root in self.uris if root.startswith("file://")]
        except (OSError, RuntimeError):
            # Links in a circle.
            return None
        return real if any(real.is_relative_to(root) for root in roots) else None


def wrong_form(uri: str) -> str | None:
    """Return what is wanted of a URI that is none of ours, or not the only way to write where it leads."""
    found = _SCHEME.fullmatch(uri)
    if found is None or found[1] not in SCHEMES:
        return f"want a URI of the scheme {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}"
    rest = found[2]
    if found[1] == "file" and not rest.startswith("/"):
        return "want file:/// and an absolute path"
    segments = rest.removeprefix("/" if found[1] == "file" else "").removesuffix("/").split("/")
    # fsspec takes "::" for one file system inside another.
    if "::" in rest or "\\" in rest or any(each in ("", ".", "..") for each in segments):
        return "want a path without empty parts, ., .., :: and \\"
    return None


def _is_under(uri: str, root: str) -> bool:
    root = root.rstrip("/")
    return uri == root or uri.startswith(f"{root}/")
