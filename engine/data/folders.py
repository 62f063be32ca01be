"""Where a FOLDER of the configuration lies."""

from __future__ import annotations

import os
from pathlib import Path

from engine.data.config import DataConfig
from engine.errors import DataError


def folder_of(config: DataConfig) -> Path:
    """The folder that a `parquet:` or `imagefolder:` source names: as given, else under TESSERA_DATA.

    Raises:
        DataError: naming both places where there is neither.
    """
    given = Path(os.path.expandvars(config.place)).expanduser()
    if given.is_dir():
        return given
    tried = f"there is no folder {given.absolute()}"
    remedy = "correct the path, or set the environment variable TESSERA_DATA to the folder that holds your data sets"
    shared = os.environ.get("TESSERA_DATA")
    if not shared:
        raise DataError("data.source", config.source, f"{tried}, and TESSERA_DATA is not set", remedy)
    if (Path(shared) / given).is_dir():
        return Path(shared) / given
    raise DataError("data.source", config.source, f"{tried}, and none {Path(shared) / given} (TESSERA_DATA)", remedy)
