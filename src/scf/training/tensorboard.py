"""The curves of a run for TensorBoard, where it is installed and asked for."""

from collections.abc import Mapping
from pathlib import Path

from scf.core.errors import MissingTool


class Board:
    """Writes event files into a folder.

    Raises:
        MissingTool: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingTool(
                "--tensorboard needs the package tensorboard, which is not installed",
                remedy="Install the extra: `pip install 'scf[tensorboard]'`, or leave it out: "
                "--progress has the same numbers.",
            ) from error
        self._writer = SummaryWriter(str(folder))

    def draw(self, step: int, curves: Mapping[str, float | None]) -> None:
        """One point of each curve that has a value."""
        for name, value in curves.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()
