"""Which node of a job this machine is, as its door told it, and how torchrun is told.

Static rendezvous: nobody looks for anybody. Node 0 listens at an address that all know beforehand.
"""

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from scf.core.errors import InputError

NODES, RANK = "SCF_NODES", "SCF_NODE_RANK"
ADDRESS, PORT = "SCF_MASTER_ADDR", "SCF_MASTER_PORT"
PROCS = "SCF_PROCS_PER_NODE"

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Node:
    """This machine among those of a job.

    Attributes:
        rank: 0 for the one that all meet at.
        count: How many there are.
        address: Of node 0.
        port: Where it listens.
        procs: Processes on each node: one a GPU.
    """

    rank: int
    count: int
    address: str
    port: int
    procs: int

    @classmethod
    def of(cls, environment: Mapping[str, str], *, num_gpus: int) -> "Node | None":
        """As the door told it; None for a job of one process.

        Raises:
            InputError: It was told something that cannot be.
        """
        try:
            count = int(environment.get(NODES, "1"))
            # One process, unless a door says otherwise; each node of several uses all its GPUs.
            procs = int(environment.get(PROCS) or (max(1, num_gpus) if count > 1 else 1))
            if count == 1 and procs == 1:
                return None
            node = cls(
                rank=int(environment.get(RANK, "0")),
                count=count,
                address=environment.get(ADDRESS, "127.0.0.1"),
                port=int(environment.get(PORT, "29400")),
                procs=procs,
            )
        except ValueError as error:
            raise InputError(
                f"{NODES}, {RANK}, {PORT}, {PROCS} must be numbers: {error}"
            ) from error
        if not 0 <= node.rank < node.count or node.procs < 1 or not 0 < node.port < 65536:
            raise InputError(f"node {node.rank} of {node.count}, port {node.port}: cannot be")
        return node

    def command(self, module: str) -> list[str]:
        """`python -m module` as every node starts it."""
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(self.count), "--node-rank", str(self.rank)),
            *("--nproc-per-node", str(self.procs), "--max-restarts", "0"),
            *("--rdzv-backend", "static", "--master-addr", self.address),
            *("--master-port", str(self.port), "-m", module),
        ]

    def environment(self) -> dict[str, str]:
        """Which network gloo and NCCL are to use: the one on which node 0 is reached."""
        if self.count == 1:
            return {}
        name = interface_towards(self.address)
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        return {key: name for key in names if name and key not in os.environ}


def environment_of(rank: int, count: int, address: str, port: int) -> dict[str, str]:
    """What a door tells the worker of one node; nothing where there is one node."""
    if count == 1:
        return {}
    return {NODES: str(count), RANK: str(rank), ADDRESS: address, PORT: str(port)}


def interface_towards(address: str) -> str | None:
    """The network interface over which `address` is reached (Linux); None where nobody says."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: the kernel only chooses a way
            ours = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == ours:
                    return name
    except OSError:
        return None
    return None


def _address_of(probe: socket.socket, name: str) -> str | None:
    try:
        reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(reply[20:24])
