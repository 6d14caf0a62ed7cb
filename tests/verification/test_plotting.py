"""Where matplotlib comes in."""

import sys

import pytest

from scf.core.errors import MissingTool
from scf.verification.plotting import pyplot


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingTool, match="matplotlib") as caught, pyplot():
        pass
    assert "scf[train]" in (caught.value.remedy or "")


def test_a_style_holds_inside_and_ends_with_it() -> None:
    with pyplot({"font.size": 31}) as plt:
        assert plt.rcParams["font.size"] == 31
        assert not plt.rcParams["axes.spines.top"]
    assert plt.rcParams["font.size"] != 31
