"""matplotlib, imported when a picture is drawn, and what all our pictures share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scf.core.errors import MissingTool

# Blue is real, orange is sampled: of the colours of Okabe and Ito, which people with any colour
# vision can tell apart.
REAL, SAMPLED, INK = "#0072B2", "#E69F00", "#222222"


@contextmanager
def pyplot(style: dict[str, Any] | None = None) -> Iterator[Any]:
    """`matplotlib.pyplot` that draws into files, in our style and `style`.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingTool(
            "pictures need matplotlib, which is not installed",
            remedy="Install the extra: `pip install 'scf[train]'`.",
        ) from error
    shared: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    shared.update(style or {})
    with mpl.rc_context(shared):
        yield plt
