"""The program as a library; `engine` hands these out under the same names."""

from __future__ import annotations

from engine.api.calls import compare, open, partition, plan, resume, run, sweep
from engine.errors import ConfigError, UserError

__all__ = ["ConfigError", "UserError", "compare", "open", "partition", "plan", "resume", "run", "sweep"]
