"""Which side a sample is on: a hash of its content decides, so that what is trained and what is measured are disjoint."""

import hashlib

Span = tuple[int, int]


Cell = tuple[int, int]


HELD_OUT_SHARE = 0.1


def is_held_out(key: str) -> bool:
    """True for about HELD_OUT_SHARE of all keys, decided by the key's SHA-256 alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32
