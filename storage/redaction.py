r"""Remove passwords and tokens from the URLs in a text.

>>> redacted("http://me:secret@host/a.png"), redacted("https://host/a.png?size=2&X-Amz-Signature=abc")
('http://***@host/a.png', 'https://host/a.png?size=2&X-Amz-Signature=***')
"""

import re

SHOWN = "***"

USERINFO = re.compile(r"(:(?:\\?/){2})[^/?#\s\"'<>\\]+@")
"""The user and the password in a URL, or the token in their place."""

PARAMETER = re.compile(
    r"((?:[?&;#]|\\u0026)"  # some JSON encoders write `&` as `\u0026`
    r"(?:sig|code|policy|pass|pwd|auth|jwt"
    r"|[^=&;#?\s\"'<>]*(?:signature|token|key|secret|passw|credential|authorization|session)[^=&;#?\s\"'<>]*)"
    r"=)[^&#\s\"'<>\\]*[^&#\s\"'<>\\:;,.)]",
    re.IGNORECASE,
)
"""A query parameter whose value grants access; without the punctuation of a sentence around it."""


def redacted(text: str) -> str:
    """Replace passwords and tokens in the URLs of a text by `***`."""
    if "@" not in text and "=" not in text:
        return text
    return PARAMETER.sub(rf"\1{SHOWN}", USERINFO.sub(rf"\1{SHOWN}@", text))


def has_secret(uri: str) -> bool:
    """Return whether a URI holds a password or a token."""
    return redacted(uri) != uri
