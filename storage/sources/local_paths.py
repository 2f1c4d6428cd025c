"""Resolve the paths of images as other systems write them."""

import os
import re
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from storage.sources.unicode_marks import has_many_marks
from storage.sources.validation import BadRow, inside, is_storable

LOCAL = re.compile(r"(?:file|local):", re.IGNORECASE)
HOSTS = ("localhost", "127.0.0.1")


def local_path(value: str, folder: Path) -> str:
    r"""Return the absolute path of an image inside `folder`.

    It need not exist.

    A path is taken as written, else with `\` as `/`, else in the other Unicode forms.

    Args:
        value: a path or a `file:` URL; storable.
        folder: resolved.

    Raises:
        BadRow: `outside_source`: it leads out of `folder`; `bad_uri`: it names another host.
    """
    path = _path_of_url(value) if LOCAL.match(value) else value
    if path.startswith(("//", "\\\\")):
        why = f"image {value[:300]!r} names a host, but no scheme; write https://, or a path in the folder"
        raise BadRow("bad_uri", why)
    written, *others = _forms(path)
    found = inside(written, folder)
    if not others or os.path.exists(found):
        return found
    return next((one for form in others if os.path.exists(one := inside(form, folder))), found)


def _path_of_url(url: str) -> str:
    """Return the path in a `file:` URL, decoded if necessary."""
    path = LOCAL.sub("", url, count=1).removeprefix("//")
    for host in HOSTS:
        if path.lower().startswith(f"{host}/"):
            path = path[len(host) :]
    decoded = unquote(path)
    return decoded if "%" in path and not os.path.exists(path) and is_storable(decoded) else path


def _forms(path: str) -> list[str]:
    """Return the spellings of a path, as written first."""
    forms = [path]
    if "\\" in path:
        forms.append(path.replace("\\", "/"))
    if not path.isascii() and not has_many_marks(path):
        forms += [normalize(form, one) for one in forms for form in ("NFC", "NFD")]
    return list(dict.fromkeys(forms))
