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
    of_picture: bool = False
    """Whether the row is a record, whose image somebody may want to see."""


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        # of a row
        "no_key": Reason("The row has no key, or an empty one.", "Give it a key of its own."),
        "bad_key": Reason(
            "The key is too long, or holds what no store can keep.", "Rename it at the source."
        ),
        "duplicate_key": Reason(
            "An earlier record of this source has the same key, and counts.",
            "Give each record its own key, or remove one of them.",
            of_picture=True,
        ),
        "empty_record": Reason(
            "The row has neither a text nor a picture.", "Fill in one, or remove the row."
        ),
        "nothing_to_embed": Reason(
            "The record has no picture, and no text in a language that is embedded.",
            "Add its language to SIGHTLINE_LANGS or --langs, or give it a text in one that is.",
        ),
        "bad_text": Reason("A text, or its language, is no readable string.", "Correct it at the source."),
        "text_too_long": Reason("A text is longer than is kept.", "Shorten it."),
        "too_many_texts": Reason("The record has more texts than are kept.", "Make several records of it."),
        "bad_metadata": Reason(
            "A metadata field is not what JSON can say, or too large.", "Correct it there."
        ),
        "bad_row": Reason(
            "The row is cut or quoted wrongly, or a cell cannot be read.", "Write it again at the source."
        ),
        "not_json": Reason("The line is no JSON object.", "Write one JSON object a line."),
        "not_utf8": Reason("The text is in another encoding than UTF-8.", "Save the file again as UTF-8."),
        "line_too_long": Reason(
            "The line never seems to end.", "See whether a newline or a quote is missing."
        ),
        "unreadable": Reason(
            "The file of texts or metadata beside the picture cannot be read.", "Check its permissions."
        ),
        # of where an image is
        "bad_uri": Reason(
            "The picture's path or URL cannot be used.", "Name a file below the manifest, or an http URL."
        ),
        "outside_source": Reason(
            "The path leads out of the source's folder.", "Copy the file into that folder."
        ),
        "missing_file": Reason(
            "There is no picture where the record says.",
            "Put it there, or correct the path.",
            of_picture=True,
        ),
        "unreachable": Reason(
            "The picture could not be fetched: no answer, a refusal, or no permission.",
            "Check the address and the login; if the other side was only away, retry.",
            of_picture=True,
        ),
        "private_address": Reason(
            "A redirect leads into a private network, where strangers have no business.",
            "Correct the URL, or allow it by SIGHTLINE_PRIVATE_REDIRECTS.",
            of_picture=True,
        ),
        "too_large": Reason(
            "The file has more bytes than are taken.",
            "Make it smaller; for pictures SIGHTLINE_MAX_PICTURE_BYTES is the limit.",
            of_picture=True,
        ),
        # of the image itself
        "empty_file": Reason("The file has no content.", "Fetch or export it again.", of_picture=True),
        "not_a_picture": Reason(
            "The file holds something else than a picture of a known format.",
            "Supply a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.",
            of_picture=True,
        ),
        "damaged_picture": Reason(
            "The file is a picture, but damaged or cut short.", "Fetch or export it again.", of_picture=True
        ),
        "too_many_pixels": Reason(
            "The picture is larger than is safe to decode.", "Resize it at the source.", of_picture=True
        ),
        "too_small": Reason(
            "The picture is too small to show anything.", "Supply a larger one.", of_picture=True
        ),
        "extreme_shape": Reason(
            "One side is far longer than the other, so that a model sees nothing of it.",
            "Crop it.",
            of_picture=True,
        ),
        "unsupported_pixels": Reason(
            "The brightness of its pixels is not defined.",
            "Export it with 8 bits a channel.",
            of_picture=True,
        ),
        "too_costly": Reason(
            "Decoding the image takes more memory or time than one image may.",
            "Export it again, smaller or in another format.",
            of_picture=True,
        ),
        "crashed_decoder": Reason(
            "The program that decodes pictures crashed on it, twice.",
            "Export it again, or leave it out.",
            of_picture=True,
        ),
    }
)
