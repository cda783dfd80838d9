"""Electronegativities of the elements, to tell which atoms of a compound carry the negative charge."""

from __future__ import annotations

from collections.abc import Iterable

#: Pauling's scale, by atomic number: CRC Handbook of Chemistry and Physics (W. M. Haynes, ed.), section 9,
#: "Electronegativity"; equal to the table of the package mendeleev. Some elements have no value.
PAULING = {
    1: 2.20, 3: 0.98, 4: 1.57, 5: 2.04, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 11: 0.93, 12: 1.31, 13: 1.61, 14: 1.90,
    15: 2.19, 16: 2.58, 17: 3.16, 19: 0.82, 20: 1.00, 21: 1.36, 22: 1.54, 23: 1.63, 24: 1.66, 25: 1.55, 26: 1.83,
    27: 1.88, 28: 1.91, 29: 1.90, 30: 1.65, 31: 1.81, 32: 2.01, 33: 2.18, 34: 2.55, 35: 2.96, 37: 0.82, 38: 0.95,
    39: 1.22, 40: 1.33, 41: 1.60, 42: 2.16, 43: 2.10, 44: 2.20, 45: 2.28, 46: 2.20, 47: 1.93, 48: 1.69, 49: 1.78,
    50: 1.96, 51: 2.05, 52: 2.10, 53: 2.66, 54: 2.60, 55: 0.79, 56: 0.89, 57: 1.10, 58: 1.12, 59: 1.13, 60: 1.14,
    62: 1.17, 64: 1.20, 66: 1.22, 67: 1.23, 68: 1.24, 69: 1.25, 71: 1.00, 72: 1.30, 73: 1.50, 74: 1.70, 75: 1.90,
    76: 2.20, 77: 2.20, 78: 2.20, 79: 2.40, 80: 1.90, 81: 1.80, 82: 1.80, 83: 1.90, 84: 2.00, 85: 2.20, 87: 0.70,
    88: 0.90, 89: 1.10, 90: 1.30, 91: 1.50, 92: 1.70, 93: 1.30, 94: 1.30,
}  # fmt: skip


def most_electronegative(numbers: Iterable[int]) -> int | None:
    """Atomic number of the most electronegative of some elements; None if fewer than two of them have a known value."""
    known = {int(number) for number in numbers} & PAULING.keys()
    return max(known, key=lambda number: PAULING[number]) if len(known) > 1 else None
