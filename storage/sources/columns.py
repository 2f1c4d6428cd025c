"""Find the content columns of a manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONTENT_COLUMNS = ("key", "text", "texts", "image")

LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"image": "file_name"},  # image folders of Hugging Face
    {"image": "image", "text": "caption"},  # Flickr8k
    {"image": "image_name", "text": "comment"},  # Flickr30k
    {"image": "url", "text": "caption"},  # Conceptual Captions, COYO
    {"image": "url", "text": "text"},  # LAION
)
"""Columns of manifests without a key, by the content that they hold; case is ignored."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Hold the content of each column of a manifest."""

    contents: Mapping[str, str] = field(default_factory=dict)
    """Content column by the name that the manifest has for it."""

    key_is_image: bool = False
    """Whether the image identifies a record, because no column is a key."""

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row under the names of the content columns."""
        named = {self.contents.get(name, name): value for name, value in row.items()}
        if self.key_is_image:
            named["key"] = named.get("image")
        return named

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the column names of a manifest, content columns under theirs."""
        return [self.contents.get(name, name) for name in names]


def columns_of(names: Sequence[str], mapped: Sequence[tuple[str, str]] = ()) -> Columns:
    """Find the content columns among the column names of a manifest.

    Mapped columns count first, then the content's own names in any case, then the known layouts.

    >>> columns_of(["URL", "TEXT", "width"])
    Columns(contents={'TEXT': 'text', 'URL': 'image'}, key_is_image=True)
    """
    contents = {column: content for content, column in mapped if column in names}
    lower = {name.strip().lower(): name for name in reversed(names)}
    for content in CONTENT_COLUMNS:
        column = lower.get(content)
        if content not in contents.values() and column is not None and column not in contents:
            contents[column] = content
    if "key" in contents.values():
        return Columns(_changed(contents))
    for layout in LAYOUTS:
        if all(name in lower for name in layout.values()):
            contents |= {
                lower[name]: content
                for content, name in layout.items()
                if content not in contents.values() or contents.get(lower[name]) == content
            }
            break
    return Columns(_changed(contents), key_is_image="image" in contents.values())


def _changed(contents: Mapping[str, str]) -> dict[str, str]:
    return {column: content for column, content in contents.items() if column != content}


def missing_columns(names: Sequence[str], mapped: Sequence[tuple[str, str]]) -> list[str]:
    """Return the mapped columns that a manifest does not have."""
    return [column for _, column in mapped if column not in names]
