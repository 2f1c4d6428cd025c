"""Describe each reason code of an ignored file or field."""

from collections.abc import Mapping
from types import MappingProxyType

IGNORED_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "not_an_image": "neither images nor beside one",
        "vector_image": "vector graphics; export them as PNG",
        "unused_text": "texts or metadata that belong to no image; give them the name of theirs",
        "captions_not_understood": "captions or tables in no known layout; ingest each as a manifest",
        "missing_image": "captions of images that are not there",
        "archive": "archives; unpack them and ingest the folder",
        "hidden": "names that begin with a dot",
        "excluded": "thumbnails, bins, or excluded by a pattern",
        "link_to_folder": "links to folders; SIGHTLINE_LINKS_WITHIN follows them",
        "link_loop": "links to a folder that is read already",
        "link_outside": "links that lead out of SIGHTLINE_LINKS_WITHIN",
        "metadata_field": "metadata fields that cannot be stored, or differ between rows; records are kept",
        "encoding": "files in another encoding than UTF-8, which was detected; check a few texts",
    }
)
"""By code, a phrase that says which files these are and the remedy."""

NOTES = frozenset({"metadata_field", "encoding"})
"""Codes that are named, but stand for no ignored file."""
