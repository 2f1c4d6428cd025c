"""Encode texts and images once with frozen towers, into files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from embedding.encoders.sentence_encoder import SentenceEncoder
from embedding.files import atomic_write
from embedding.training.batches import FrozenFeatures, PairSource

AT_ONCE = 256
DONE = "done.json"

Rows = NDArray[np.float32]


def encode_frozen(
    encoder: SentenceEncoder,
    texts: Sequence[str],
    images: Sequence[str],
    material: PairSource,
    folder: Path,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> FrozenFeatures:
    """Return the vectors of texts and images, and a head's inputs.

    Deleted ones are left out. A call in the folder of a killed one resumes it.

    Args:
        texts: names in `material`.
        images: SHA-256.
        folder: of this model, these texts and these images alone.
        advance: called with the number of newly encoded rows.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def text_rows(names: Sequence[str]) -> list[tuple[list[int], Rows]]:
        found = [(place, text) for place, text in enumerate(material.texts(names)) if text is not None]
        return [([place for place, _ in found], encoder.texts([text for _, text in found]))]

    def image_rows(shas: Sequence[str]) -> list[tuple[list[int], Rows]]:
        found = [(place, one) for place, one in enumerate(material.images(shas)) if one is not None]
        if not found:
            return [([], np.empty((0, 1), np.float32))] * 2
        places = [place for place, _ in found]
        return [(places, rows) for rows in encoder.with_head_inputs([one for _, one in found])]

    [own] = _encode_missing(folder / "texts", texts, 1, text_rows, advance)
    vectors, inputs = _encode_missing(folder / "pictures", images, 2, image_rows, advance)
    return FrozenFeatures(_present(texts, own), own, _present(images, vectors), vectors, inputs)


def _encode_missing(
    folder: Path,
    names: Sequence[str],
    arrays: int,
    rows_of: Callable[[Sequence[str]], list[tuple[list[int], Rows]]],
    advance: Callable[[int], None],
) -> list[Rows]:
    """Return the arrays of `rows_of`; rows of deleted names are NaN."""
    folder.mkdir(exist_ok=True)
    done = _done(folder)
    advance(done)
    for start in range(done, len(names), AT_ONCE):
        chunk = names[start : start + AT_ONCE]
        for number, (places, rows) in enumerate(rows_of(chunk)):
            _write(folder / f"{number}.npy", len(names), start, len(chunk), places, rows)
        _save_done(folder, start + len(chunk))
        advance(len(chunk))
    return [_read(folder / f"{number}.npy") for number in range(arrays)]


def _write(path: Path, total: int, start: int, many: int, places: list[int], rows: Rows) -> None:
    if not path.exists():
        if not places:
            return  # the length of a row is known with the first
        created = open_memmap(path, "w+", np.float32, (total, rows.shape[1]))
        created[:] = np.nan
        created.flush()
    file = open_memmap(path, "r+")
    file[start : start + many] = np.nan
    file[np.add(places, start, dtype=np.intp)] = rows
    file.flush()


def _read(path: Path) -> Rows:
    rows: Rows = open_memmap(path, "r") if path.exists() else np.empty((0, 1), np.float32)
    return rows


def _done(folder: Path) -> int:
    path = folder / DONE
    return int(json.loads(path.read_text())) if path.exists() else 0


def _save_done(folder: Path, many: int) -> None:
    atomic_write(folder / DONE, json.dumps(many).encode())


def _present(names: Sequence[str], rows: Rows) -> dict[str, int]:
    return dict(_numbered(names, rows))


def _numbered(names: Sequence[str], rows: Rows) -> Iterator[tuple[str, int]]:
    for number in range(len(rows)):
        if not np.isnan(rows[number, 0]):
            yield names[number], number
