"""The RunPod door: rent a pod for a job, or a cluster of them, use it as a box, give it back.

The rules that keep money and jobs safe:

* A pod's name is in the book before it is asked for. After a lost answer the door looks for the
  name, several times, before it asks again; of two pods with one name, one is ended.
* Every pod has a lease, longer than its job, shorter than for ever: the provider is told to end it
  then (`terminateAfter`), the pod's own agent ends it then, and `sweep` ends what is past it.
* A cluster cannot be given an end, and a member's agent may not be allowed to end it: two hands are
  sure, `sweep` and the reaper. See docs/adr/0004.
* A pod is gone when the provider has twice not listed it, in two separate looks; until then it is
  told to end again. Pods are never stopped and resumed.
* A pod's host key is made here and sent with the order, so its ssh server is known in advance.
* One list call serves all pods, at most one every `look_s`; with clusters two, half as often.
* The purse is asked before each order, and told what the pods of a job came to.
"""

from pathlib import Path

from scf.core.clock import Clock, SystemClock
from scf.dispatch.follower import FollowSettings
from scf.dispatch.pod_record import PodBook, PodFiles
from scf.dispatch.purse import OpenPurse, Purse
from scf.dispatch.remote import RemoteDoor
from scf.dispatch.rental import H100_SXM, Candidate, RunpodSettings
from scf.dispatch.rented_pods import RentedPods
from scf.dispatch.runpod_client import RunpodClient
from scf.storage.partitions import Folder

__all__ = ["H100_SXM", "Candidate", "RunpodDoor", "RunpodSettings"]


class RunpodDoor(RemoteDoor):
    """Runs jobs on rented pods. Promises: `Dispatcher`.

    Args:
        client: The account.
        jobs: Where bundles lie, on the drive.
        home: The home.
        rental: What is rented.
        purse: Asked before each order.
        book: Where pods are written down; by default files in `home/runpod`.
        settings: How jobs are followed; by default this scf's own code is sent.
        clock: Time.
        owns_client: `close` closes the client, too.
    """

    def __init__(
        self,
        client: RunpodClient,
        jobs: Folder,
        home: Path,
        *,
        rental: RunpodSettings,
        purse: Purse | None = None,
        book: PodBook | None = None,
        settings: FollowSettings | None = None,
        clock: Clock | None = None,
        owns_client: bool = False,
    ) -> None:
        self._client = client if owns_client else None
        self._pods = RentedPods(
            client,
            home,
            rental=rental,
            purse=purse or OpenPurse(),
            book=book or PodFiles(home / "runpod"),
            clock=clock or SystemClock(),
        )
        super().__init__(
            "runpod",
            self._pods,
            jobs=jobs,
            home=home,
            settings=settings or FollowSettings(code=home / "code"),
            clock=clock,
        )

    def close(self, *, limit_s: float = 10.0) -> None:
        """See `RemoteDoor.close`."""
        super().close(limit_s=limit_s)
        if self._client is not None:
            self._client.close()

    def sweep(self) -> list[str]:
        """End what no job needs: past its lease, or in no book. Returns the names."""
        return self._pods.sweep()
