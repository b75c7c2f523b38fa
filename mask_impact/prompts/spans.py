"""Numbers in a spec, `3` or `5-9`: what they are, and whether there are as many. Knows nothing of what they count."""

from mask_impact.errors import InputError, shown

SPAN = "[0-9]+(?:-[0-9]+)?"


def span(text: str, what: str, n: int, where: str) -> range:
    """The numbers of "3" or "5-9", which must be below n; InputError. what: one of them in words; where: what has n of them."""
    first, _, last = text.partition("-")
    low, high = integer(first), integer(last or first)
    if low > high:
        raise InputError(f"{what}s {text} run backwards; give the smaller number first")
    if high >= n:
        raise InputError(f"there is no {what} {high}; {where} has {what}s 0 to {n - 1}")
    return range(low, high + 1)


def integer(digits: str) -> int:
    """The number that digits are; InputError for too many of them."""
    if len(digits) > 9:
        raise InputError(f"the number {shown(digits)} is too large")
    return int(digits)
