"""Numbers for people."""

from __future__ import annotations


def percent(share: float | None) -> str:
    """A share in [0, 1] as `81.2 %`."""
    return "  -   " if share is None else f"{100 * share:4.1f} %"


def figure_text(value: float | None, unit: str = "") -> str:
    """A figure with its unit: a share in percent as `81.2 %`, others with four digits, as `0.2301` or `3.512 nats`."""
    if unit == "%" or value is None:
        return percent(value)
    return f"{value:.4g} {unit}".rstrip()


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
