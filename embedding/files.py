"""Write files atomically."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably, for its owner alone.

    The content goes to a temporary file beside `path`, which is synced and then renamed; at last the folder
    is synced. A reader finds the old content or the new one, also after a crash.

    Raises:
        OSError: nothing was written, and the temporary file is removed.
    """
    file, name = mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems sync files and no folders
            os.fsync(folder)
    finally:
        os.close(folder)
