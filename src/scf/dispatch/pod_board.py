"""One list for everybody: the provider is asked once, however many pods and clusters there are."""

import threading

from scf.core.clock import Clock
from scf.dispatch.lots import Lot, lots_of
from scf.dispatch.runpod_client import RunpodClient


class PodBoard:
    """What the provider shows, for everybody, asked for at most once every `look_s`.

    A look is one call; two, half as often, once `expect_clusters` was called.
    """

    def __init__(self, client: RunpodClient, clock: Clock, look_s: float) -> None:
        self._client = client
        self._clock = clock
        self._look_s = look_s
        self._lock = threading.Lock()
        self._next = 0.0
        self._has_clusters = False
        self._lots: list[Lot] = []
        self._absent: dict[str, set[int]] = {}
        self.looks = 0

    def expect_clusters(self) -> None:
        """From now on, ask for clusters, too: one without members is in no list of pods."""
        with self._lock:
            if not self._has_clusters:
                self._has_clusters, self._next = True, 0.0

    def lots(self) -> list[Lot]:
        """The latest list.

        Raises:
            DoorUnavailable: The provider does not say.
        """
        with self._lock:
            if self._clock.monotonic() >= self._next:
                calls = 2 if self._has_clusters else 1
                self._next = self._clock.monotonic() + self._look_s * calls
                pods = self._client.list_pods()
                clusters = self._client.list_clusters() if self._has_clusters else []
                self._lots = lots_of(pods, clusters)
                self.looks += 1
                here = {pod.pod_id for pod in pods} | {lot.lot_id for lot in self._lots}
                for thing_id, looks in self._absent.items():
                    looks.clear() if thing_id in here else looks.add(self.looks)
            return list(self._lots)

    def last_seen(self, lot_id: str) -> Lot | None:
        """The lot as the latest list had it; nobody is asked."""
        with self._lock:
            return next((lot for lot in self._lots if lot.lot_id == lot_id), None)

    def watch(self, thing_id: str) -> None:
        """Count from now on in which looks this pod or cluster is missing."""
        with self._lock:
            self._absent.setdefault(thing_id, set())

    def times_missing(self, thing_id: str) -> int:
        """In how many looks, one after the other, it was missing; a cluster with its members."""
        with self._lock:
            return len(self._absent.setdefault(thing_id, set()))
