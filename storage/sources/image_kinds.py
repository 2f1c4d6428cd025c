"""Decide by name and by content which files are images."""

import re
from os.path import splitext

DECODED = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif"),
    )
)
"""Suffixes of images that the decoder may read."""

NOT_DECODED = frozenset(
    (
        *(".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".psd", ".psb", ".xcf", ".exr", ".hdr", ".tga", ".pcx"),
        *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".dng", ".orf", ".rw2", ".raf", ".pef"),
        *(".srw", ".3fr", ".erf", ".kdc", ".mrw", ".rwl", ".x3f", ".iiq"),
    )
)
"""Suffixes of images in formats that the decoder rejects by name."""

VECTOR = frozenset((".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf"))
ARCHIVES = frozenset((".tar", ".tgz", ".gz", ".zip", ".7z", ".rar", ".xz", ".bz2", ".zst"))
TEXTS = frozenset((".txt", ".caption", ".json"))
"""Suffixes of files beside images; they are not opened to decide on them."""

TABLES = frozenset(
    (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".token", ".xml", ".yaml", ".yml")
)

HEAD_BYTES = 32
SIGNATURE = re.compile(
    rb"(?s)\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM....\0{4}|II[*+]\0|MM\0[*+]"
    rb"|....ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1|crx )|\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|8BPS\0[\1\2]"
)
"""Of the formats in `DECODED` and of some in `NOT_DECODED`."""


def is_image_name(name: str) -> bool:
    """Return whether the suffix of a file is that of an image."""
    suffix = splitext(name)[1].lower()
    return suffix in DECODED or suffix in NOT_DECODED


def is_image_head(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an image.

    >>> is_image_head(b"GIF89a"), is_image_head(b"%PDF-1.7")
    (True, False)
    """
    return SIGNATURE.match(head) is not None


def reason_of(name: str) -> str:
    """Return the reason code of a file that is no image."""
    suffix = splitext(name)[1].lower()
    for reason, suffixes in (
        ("vector_image", VECTOR),
        ("archive", ARCHIVES),
        ("unused_text", TEXTS),
        ("captions_not_understood", TABLES),
    ):
        if suffix in suffixes:
            return reason
    return "not_an_image"
