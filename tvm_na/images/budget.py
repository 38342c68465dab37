"""What an image file may ask of its decoder, seen in its bytes before anything is decoded."""

from __future__ import annotations

import re

#: Pixels that Pillow warns of; it refuses twice as many.
MOST_PIXELS = 89_478_485
#: Scans of a progressive JPEG, each of which passes over the whole image; encoders write about ten.
MOST_SCANS = 100
#: Segments of a JPEG: tables, scans, comments, metadata; photographs have some dozens, colour profiles at most 255.
MOST_SEGMENTS = 2000
#: Compressions of TIFF by Pillow's names; the others are of fax machines, or rare.
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg")

_END, _SCAN = 0xD9, 0xDA
# A byte that begins no segment: stuffing (FF00), TEM (FF01), restarts (FFD0 to FFD7), the start of the image.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")


def jpeg_excess(data: bytes) -> str | None:
    """What a JPEG has too much of, in words; None if nothing. What is no JPEG has nothing.

    Segments are walked as libjpeg walks them, so that what metadata holds (a thumbnail has scans too) does not count.
    """
    scans = segments = 0
    position = 2 if data.startswith(b"\xff\xd8") else len(data)
    while (found := _MARKER.search(data, position)) is not None and (marker := found[1][0]) != _END:
        segments, scans = segments + 1, scans + (marker == _SCAN)
        if scans > MOST_SCANS:
            return f"at most {MOST_SCANS} scans"
        if segments > MOST_SEGMENTS:
            return f"at most {MOST_SEGMENTS} segments"
        # In what follows of a scan, no FF is followed by the number of a segment: mostly a glance at it is enough.
        if marker == _SCAN and scans + data.count(b"\xff\xda", found.end()) <= MOST_SCANS:
            return None
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    return None
