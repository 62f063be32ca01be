"""Numbers for people."""

from __future__ import annotations

import math

NO_NUMBER = "not a number"
"""Words for NaN, and for the null that result.json has for it."""


def figure_digits(value: float | None, unit: str = "") -> str:
    """A figure without its unit: a share in percent as `81.2`, others with four digits, as `0.2301` or `12,345`."""
    if value is None or math.isnan(value):
        return NO_NUMBER
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def rounded_like(value: float, other: float) -> float:
    """A value with as many decimals as four digits of another have; as it is where either is not finite, or the other
    is 0."""
    if not (math.isfinite(value) and math.isfinite(other)) or other == 0:
        return value
    return round(value, max(0, 3 - math.floor(math.log10(abs(other)))))


def figure_text(value: float | None, unit: str = "") -> str:
    """A figure with its unit, as `81.2 %` or `3.512 nats`; see `figure_digits`."""
    digits = figure_digits(value, unit)
    return digits if digits == NO_NUMBER else f"{digits} {unit}".rstrip()


def difference_text(amount: float, unit: str = "") -> str:
    """The difference of two figures: shares in `points`, of which a hundred are the whole."""
    return f"{figure_digits(amount, unit)} points" if unit == "%" else figure_text(amount, unit)


def count_text(count: int, noun: str) -> str:
    """`1 round`, `4 rounds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes as `4.3 MB`, in powers of 1,000."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as `1:05`, or `2:03:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
