"""scf: a self-hosted foundry that keeps physics models current, with evidence for every claim.

For a notebook: `scf.fit(arrays)` and `scf.load(path)` give a model with `.energy`, `.score`,
`.sample` and `.log_prob` (docs/notebook.md). They load torch when they are first used, not before:
`import scf` stays light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scf.training.api import Model, fit, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "fit", "load"]

_IN_API = frozenset({"Model", "fit", "load"})


def __getattr__(name: str) -> Any:
    if name not in _IN_API:
        raise AttributeError(f"module 'scf' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("scf.training.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_IN_API])
