"""Environments for child processes."""

import os


def python_env(**extra: str) -> dict[str, str]:
    """This environment without SCF_*, plus `extra`; one thread, so that tests share two cores."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("SCF_")}
    return base | {"OMP_NUM_THREADS": "1"} | extra
