"""Network namespaces: another machine's network, with a cable to this one. Root on Linux."""

import itertools
import os
import subprocess
from dataclasses import dataclass

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cable:
    """A namespace and the two ends of the cable to it."""

    name: str
    here: str
    there: str
    link_here: str
    link_there: str

    def down(self) -> None:
        """Pull the cable."""
        ip("-n", self.name, "link", "set", self.link_there, "down")

    def up(self) -> None:
        """Put it back."""
        ip("-n", self.name, "link", "set", self.link_there, "up")

    def remove(self) -> None:
        """Take all of it away; twice is once."""
        subprocess.run(["ip", "link", "del", self.link_here], capture_output=True, timeout=60)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=60)


@dataclass(frozen=True)
class Overlay:
    """A network of their own between namespaces, as the provider gives to a cluster."""

    bridge: str
    net: str

    def address(self, rank: int) -> str:
        return f"{self.net}.{rank + 1}"

    def join(self, cable: Cable, rank: int) -> str:
        """Bring a namespace in; its address there. The link ends with the namespace."""
        here, there = f"{self.bridge}a{rank}", f"{self.bridge}b{rank}"
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", cable.name)
        ip("link", "set", here, "master", self.bridge)
        ip("link", "set", here, "up")
        ip("-n", cable.name, "addr", "add", f"{self.address(rank)}/24", "dev", there)
        ip("-n", cable.name, "link", "set", there, "up")
        return self.address(rank)

    def remove(self) -> None:
        """Take it away; twice is once."""
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, timeout=10)


def new_overlay() -> Overlay:
    """A bridge that no other test process has."""
    number = next(_numbers)
    place = (os.getpid() * 64 + number) % 2**14
    overlay = Overlay(f"o{os.getpid() % 100_000}_{number}", f"10.{78 + place // 256}.{place % 256}")
    ip("link", "add", overlay.bridge, "type", "bridge")
    ip("link", "set", overlay.bridge, "up")
    return overlay


def new_cable() -> Cable | None:
    """A new namespace, connected; None where that is not allowed. Names and addresses are apart
    from those of other test processes."""
    number = next(_numbers)
    tag = f"{os.getpid() % 100_000}_{number}"
    place = (os.getpid() * 64 + number) % (2**14)
    base = 4 * (place % 64)
    net = f"10.77.{place // 64}"
    cable = Cable(f"scf_{tag}", f"{net}.{base + 1}", f"{net}.{base + 2}", f"h{tag}", f"p{tag}")
    try:
        ip("netns", "add", cable.name)
    except (OSError, subprocess.CalledProcessError):
        return None
    try:
        ip("link", "add", cable.link_here, "type", "veth", "peer", "name", cable.link_there,
           "netns", cable.name)  # fmt: skip
        ip("addr", "add", f"{cable.here}/30", "dev", cable.link_here)
        ip("-n", cable.name, "addr", "add", f"{cable.there}/30", "dev", cable.link_there)
        ip("link", "set", cable.link_here, "up")
        ip("-n", cable.name, "link", "set", cable.link_there, "up")
        ip("-n", cable.name, "link", "set", "lo", "up")
    except BaseException:
        cable.remove()
        raise
    return cable


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)
