"""One list of pods for everybody: the provider is asked once, however many pods there are."""

import threading

from scf.core.clock import Clock
from scf.dispatch.runpod_client import RunpodClient
from scf.dispatch.runpod_model import Pod


class PodBoard:
    """The provider's list of pods, for everybody, asked for at most once every `look_s`."""

    def __init__(self, client: RunpodClient, clock: Clock, look_s: float) -> None:
        self._client = client
        self._clock = clock
        self._look_s = look_s
        self._lock = threading.Lock()
        self._next = 0.0
        self._pods: list[Pod] = []
        self._absent: dict[str, set[int]] = {}
        self.looks = 0

    def pods(self) -> list[Pod]:
        """The latest list.

        Raises:
            DoorUnavailable: The provider does not say.
        """
        with self._lock:
            if self._clock.monotonic() >= self._next:
                self._next = self._clock.monotonic() + self._look_s
                self._pods = self._client.list_pods()
                self.looks += 1
                here = {pod.pod_id for pod in self._pods}
                for pod_id, looks in self._absent.items():
                    looks.clear() if pod_id in here else looks.add(self.looks)
            return list(self._pods)

    def watch(self, pod_id: str) -> None:
        """Count from now on in which looks this pod is missing."""
        with self._lock:
            self._absent.setdefault(pod_id, set())

    def times_missing(self, pod_id: str) -> int:
        """In how many looks, one after the other, it was missing."""
        with self._lock:
            return len(self._absent.setdefault(pod_id, set()))
