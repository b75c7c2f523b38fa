"""Numbers as the text of a block in a page: float32, packed small, for the page's script to unpack.

Knows numpy and the layout; not what the numbers are. A block is base64 of gzip of: the number of binary digits kept of the
mantissa (a byte), the number of values (four bytes, lowest first), then the values' bits, rotated left by one so that the
exponent is a byte of its own, in planes: the first byte of all values, their second byte, ..., and of a byte that is not kept
whole each bit, eight values to a byte. Mantissas hardly compress. `templates/shared/blocks.js` reads it.
"""

import base64
import zlib

import numpy as np

# Binary digits behind the leading one: those of float32, and the fewest that still tell values apart.
EXACT, FEWEST = 23, 7
GZIP_WINDOW = 31  # what zlib calls the gzip format with its largest window


def encode(values: np.ndarray, digits: int = EXACT) -> str:
    """The values as text, rounded to `digits` binary digits behind the leading one.

    NaN stays NaN; values below float32's normal range (1e-38) have fewer digits. A block with a negative number keeps all,
    since a sign has no place beside fewer.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
    if digits < EXACT and (values < 0).any():
        digits = EXACT
    if digits < EXACT:
        bits = _rounded(bits, digits)
    turned = (bits << np.uint32(1)) | (bits >> np.uint32(31))
    planes = turned.astype(">u4").view(np.uint8).reshape(-1, 4).T
    n_kept = 32 if digits == EXACT else 8 + digits
    parts = [np.array([digits], np.uint8), np.array([turned.size], "<u4").view(np.uint8), *planes[: n_kept // 8]]
    parts += [np.packbits((turned >> np.uint32(31 - place)) & np.uint32(1)) for place in range(n_kept // 8 * 8, n_kept)]
    compress = zlib.compressobj(6, zlib.DEFLATED, GZIP_WINDOW, strategy=zlib.Z_FILTERED)  # smallest for such bytes
    return base64.b64encode(compress.compress(np.concatenate(parts).tobytes()) + compress.flush()).decode()


def _rounded(bits: np.ndarray, digits: int) -> np.ndarray:
    """Bits of numbers that are not negative, rounded to nearest, ties to even."""
    dropped = np.uint32(EXACT - digits)
    half = (np.uint32(1) << (dropped - np.uint32(1))) - np.uint32(1) + ((bits >> dropped) & np.uint32(1))
    rounded = ((bits + half) >> dropped) << dropped
    infinite = np.uint32(0x7F800000)
    is_nan, overflows = (bits & np.uint32(0x7FFFFFFF)) > infinite, rounded >= infinite
    rounded = np.where(overflows, (bits >> dropped) << dropped, rounded)  # the largest would become infinite
    return np.where(is_nan, np.uint32(0x7FC00000), rounded).astype(np.uint32)
