"""How many nodes of a Ray cluster train together, and what each gives; told to the worker."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scf.core.errors import InputError

GROUP = "SCF_RAY_GROUP"
# The process that a worker does not outlive: the gate of its job.
WHILE_PID = "SCF_WHILE_PID"


@dataclass(frozen=True)
class RayGroup:
    """The part of a cluster that one training run takes.

    Attributes:
        nodes: Machines; the one on which the job begins is the first.
        procs: Processes on each: one a GPU.
        cpus: CPUs that each process takes of Ray's count.
        gpus: GPUs that each process takes.
    """

    nodes: int = 1
    procs: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.procs < 1 or self.cpus < 0 or self.gpus < 0:
            raise InputError(f"{self}: nodes and procs from 1, cpus and gpus from 0")

    @property
    def world_size(self) -> int:
        return self.nodes * self.procs

    def environment(self) -> dict[str, str]:
        """What a door tells the worker."""
        return {GROUP: f"{self.nodes} {self.procs} {self.cpus:g} {self.gpus:g}"}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "RayGroup | None":
        """As the door told it; None for a job that is not on Ray.

        Raises:
            InputError: It was told something that cannot be.
        """
        if GROUP not in environment:
            return None
        try:
            nodes, procs, cpus, gpus = environment[GROUP].split()
            return cls(int(nodes), int(procs), float(cpus), float(gpus))
        except ValueError as error:
            raise InputError(f"{GROUP}={environment[GROUP]!r}: {error}") from error

    def command(self, module: str) -> list[str]:
        """`python -m module` as Ray Train is to run it; its arguments follow."""
        return [sys.executable, "-m", "scf.dispatch.ray_train", module]


def selectors(first: str, others: Sequence[str], procs: int) -> list[dict[str, str]]:
    """For each process in order of rank, the node it must be on: the first node's come first."""
    return [{"ray.io/node-id": node} for node in (first, *others) for _ in range(procs)]
