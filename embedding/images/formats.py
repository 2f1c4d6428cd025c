"""List the formats that are read, and name others by their bytes."""

import re

from PIL import Image

BUILT_IN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FORMATS = (*BUILT_IN, "HEIF")
MEDIA_TYPES = {format: f"image/{format.lower()}" for format in FORMATS}
NAMED = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"

SIGNATURE = re.compile(
    rb"(?s)\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8[79]a|BM....\0{4}|II[*+]\0(?!....CR)|MM\0[*+]"
    rb"|....ftyp(avi[fs]|he[iv][cmsx]|m[is][fa]1)"
)
ISO_MEDIA = re.compile(rb"(?s)....ftyp")

FOREIGN = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51",
    "JPEG XR": rb"II\xbc",
    "Canon RAW (CR2)": rb"II[*+]\0....CR",
    "Canon RAW (CR3)": rb"....ftypcrx ",
    "Canon RAW (CRW)": rb"II....HEAPCCDR",
    "Fujifilm RAW (RAF)": rb"FUJIFILMCCD-RAW",
    "Olympus RAW (ORF)": rb"IIR[OS]|MMOR",
    "Panasonic RAW (RW2)": rb"IIU\0",
    "Minolta RAW (MRW)": rb"\0MRM",
    "Sigma RAW (X3F)": rb"FOVb",
    "Photoshop": rb"8BPS",
    "GIMP": rb"gimp xcf",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]{0,200}>\s*)?"
    rb"((<!--.{0,800}?-->|<!DOCTYPE svg[^>]{0,400}>)\s*)*<svg[\s>]",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "DjVu": rb"AT&TFORM",
    "icon (ICO, CUR)": rb"\0\0[\x01\x02]\0[^\0]\0",
    "icon (ICNS)": rb"icns",
    "Netpbm": rb"P[1-7fFy]\s+[#\dW]",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "DirectDraw surface": rb"DDS ",
    "Khronos texture": rb"\xabKTX ",
    "FITS": rb"SIMPLE  =",
    "DICOM": rb".{128}DICM",
    "QOI": rb"qoif",
    "BPG": rb"BPG\xfb",
    "FLIF": rb"FLIF",
    "SGI": rb"\x01\xda[\0\x01][\x01\x02]",
    "PCX": rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]",
    "MNG": rb"\x8a[MJ]NG|\x8bJNG",
    "Windows metafile": rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF",
    "BLP": rb"BLP[12]",
    "GRIB": rb"GRIB",
    "film (FLI, FLC)": rb".{4}[\x11\x12]\xaf",
    "film (AVI)": rb"RIFF....AVI ",
    "film (MP4, QuickTime)": rb"....ftyp",
    "film (Matroska, WebM)": rb"\x1a\x45\xdf\xa3",
}
"""Formats that are known by name and not read; the first that matches names the file."""

FOREIGN_SIGNATURES = {name: re.compile(b"(?s)" + pattern) for name, pattern in FOREIGN.items()}

UNSUPPORTED = re.compile(
    r"(?i)unsupported|not supported|not configured|unknown (pixel|data organization|compression|raw)"
    r"|cannot (identify|handle)|not implemented|bitfields layout"
)
"""Messages of Pillow and its libraries for a variant of a known format that they do not read."""


def foreign_format(data: bytes) -> str | None:
    """Return the name of a format that is not read, or None."""
    if SIGNATURE.match(data):
        return None
    return next((name for name, pattern in FOREIGN_SIGNATURES.items() if pattern.match(data)), None)


def formats_of(data: bytes) -> tuple[str, ...]:
    """Return the formats to try on `data`; load HEIF on first use."""
    if not ISO_MEDIA.match(data):
        return BUILT_IN
    if "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        # one thread, as a worker has; the thumbnail or depth map of a phone is no image of its own
        register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return FORMATS
