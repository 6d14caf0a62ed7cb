"""Libraries that some readers need, imported when such a file is met and not before.

The conductor runs without them: an absent one is a `MissingTool` that says what to install.
"""

import importlib
from typing import Any

from scf.core.errors import MissingTool


def tool(module: str, *, extra: str) -> Any:
    """The module, imported now.

    Args:
        module: Its name, such as `h5py` or `scipy.io`.
        extra: The extra of `scf` that brings it.

    Raises:
        MissingTool: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingTool(
            f"reading this file needs {library}, which is not installed",
            remedy=f"Install the extra: `pip install 'scf[{extra}]'`.",
        ) from error


def has_tool(module: str) -> bool:
    """Whether the module can be imported. Imports it."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
