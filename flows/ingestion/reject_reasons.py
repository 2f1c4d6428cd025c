"""Describe each reason code of a reject, and its remedy."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Reason:
    """Describe one reason code.

    The message of a reject applies it to its row.
    """

    meaning: str
    remedy: str
    of_image: bool = False
    """Whether the row is a record with an image, which the console previews."""


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        # of a row
        "no_key": Reason("The row has no key, or an empty one.", "Give it a key of its own."),
        "bad_key": Reason(
            "The key is too long, or has characters that no store can keep.", "Rename it at the source."
        ),
        "duplicate_key": Reason(
            "An earlier record of this source has the same key, and counts.",
            "Give each record its own key, or remove one of them.",
            of_image=True,
        ),
        "empty_record": Reason("The row has neither a text nor an image.", "Fill in one, or remove the row."),
        "nothing_to_embed": Reason(
            "The record has no image, and no text in a language that is embedded.",
            "Add its language to SIGHTLINE_LANGS or --langs, or give it a text in one that is.",
        ),
        "bad_text": Reason("A text, or its language, is no readable string.", "Correct it at the source."),
        "text_too_long": Reason("A text is longer than the limit.", "Shorten it."),
        "too_many_texts": Reason("The record has more texts than the limit.", "Make several records of it."),
        "bad_metadata": Reason(
            "A metadata field cannot be written as JSON, or is too large.", "Correct it there."
        ),
        "bad_row": Reason(
            "The row is cut or quoted wrongly, or a cell cannot be read.", "Write it again at the source."
        ),
        "not_json": Reason("The line is no JSON object.", "Write one JSON object a line."),
        "not_utf8": Reason("The text is in another encoding than UTF-8.", "Save the file again as UTF-8."),
        "line_too_long": Reason(
            "The line is longer than the limit.", "Check for a missing newline or quote."
        ),
        "unreadable": Reason(
            "The file of texts or metadata beside the image cannot be read.", "Check its permissions."
        ),
        # of where an image is
        "bad_uri": Reason(
            "The image's path or URL cannot be used.", "Name a file below the manifest, or an http URL."
        ),
        "outside_source": Reason(
            "The path leads out of the source's folder.", "Copy the file into that folder."
        ),
        "missing_file": Reason(
            "There is no image where the record says.",
            "Put it there, or correct the path.",
            of_image=True,
        ),
        "unreachable": Reason(
            "The image could not be fetched: no answer, an error, or no permission.",
            "Check the address and the login; if the server was unavailable for a while, retry.",
            of_image=True,
        ),
        "private_address": Reason(
            "A redirect leads into a private network.",
            "Correct the URL, or allow it by SIGHTLINE_PRIVATE_REDIRECTS.",
            of_image=True,
        ),
        "too_large": Reason(
            "The file has more bytes than the limit.",
            "Make it smaller; SIGHTLINE_MAX_PICTURE_BYTES limits images.",
            of_image=True,
        ),
        # of the image itself
        "empty_file": Reason("The file has no content.", "Fetch or export it again.", of_image=True),
        "not_a_picture": Reason(
            "The file is no image in a known format.",
            "Supply a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC.",
            of_image=True,
        ),
        "unsupported_format": Reason(
            "The file is an image or a film in a format, or a variant of one, that is not read.",
            "Export it as JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC.",
            of_image=True,
        ),
        "damaged_picture": Reason(
            "Pixels of the image are missing: it is damaged or cut short.",
            "Fetch or export it again.",
            of_image=True,
        ),
        "too_many_pixels": Reason(
            "The image is larger than is safe to decode.", "Resize it at the source.", of_image=True
        ),
        "too_small": Reason(
            "The image is too small to show anything.", "Supply a larger one.", of_image=True
        ),
        "extreme_shape": Reason(
            "One side is far longer than the other, so that a model cannot use it.",
            "Crop it.",
            of_image=True,
        ),
        "unsupported_pixels": Reason(
            "The brightness of its pixels is not defined.",
            "Export it with 8 bits a channel.",
            of_image=True,
        ),
        "too_costly": Reason(
            "Decoding the image takes more memory or time than one image may.",
            "Export it again, smaller or in another format.",
            of_image=True,
        ),
        "crashed_decoder": Reason(
            "The program that decodes images crashed on it, twice.",
            "Export it again, or leave it out.",
            of_image=True,
        ),
    }
)
