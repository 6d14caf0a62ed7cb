"""End this pod when its lease is over, from inside: one of four hands, and it needs nobody else.

This one file is part of the worker's image and is started by its entrypoint; it uses the standard
library alone. It reads from the environment what the order and the provider put there:

    SCF_LEASE_UNTIL   when this pod ends, RFC 3339
    RUNPOD_POD_ID     this pod
    RUNPOD_API_KEY    the provider's own key of this pod; it can end this pod and nothing of ours
    SCF_CLUSTER_PODS  set in a member of a cluster
    SCF_RUNPOD_REST, SCF_RUNPOD_GRAPHQL   other addresses, for tests

It asks until it is ended by what it asked for. Whether a pod's own key may use REST v2 is not said
by the provider's documents, so both ways are tried: REST DELETE, and GraphQL `podTerminate`.

A member of a cluster cannot be ended as a pod (409): it ends with its cluster. Whether its own key
may end that is not said either. It is tried, by every member; nobody may count on this hand there.
"""

import contextlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

REST = "https://api.runpod.io/v2"
GRAPHQL = "https://api.runpod.io/graphql"
MUTATION = "mutation End($input: PodTerminateInput!) { podTerminate(input: $input) }"
AGAIN_S = 10.0
# The clock is looked at this often: it may be set while we wait.
LOOK_S = 5.0
TIMEOUT_S = 15.0
ANSWER_MAX_BYTES = 2**20


def main(environment: Mapping[str, str], say: Callable[[str], object]) -> int:
    """Wait for the end of the lease, then ask for the end of the pod until it comes."""
    try:
        until = datetime.fromisoformat(environment["SCF_LEASE_UNTIL"])
        pod_id, key = environment["RUNPOD_POD_ID"], environment["RUNPOD_API_KEY"]
    except (KeyError, ValueError) as error:
        say(f"lease: this pod cannot end itself: {type(error).__name__}: {error}\n")
        return 1
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    say(f"lease: pod {pod_id} ends itself at {until.isoformat()}\n")
    while (left_s := (until - datetime.now(UTC)).total_seconds()) > 0:
        time.sleep(min(LOOK_S, left_s))
    while True:
        said = [end_by_rest(environment, pod_id, key), end_by_graphql(environment, pod_id, key)]
        if environment.get("SCF_CLUSTER_PODS"):
            said.append(end_cluster(environment, pod_id, key))
        say(f"lease: over; asked for the end of {pod_id}: {'; '.join(said)}\n")
        time.sleep(AGAIN_S)


def end_by_rest(environment: Mapping[str, str], pod_id: str, key: str) -> str:
    """Ask REST v2; what it said, in a few words."""
    address = environment.get("SCF_RUNPOD_REST") or REST
    request = urllib.request.Request(  # noqa: S310 - `_sent` looks at the scheme
        f"{address}/pods/{pod_id}", method="DELETE"
    )
    return f"REST {_sent(request, key)}"


def end_by_graphql(environment: Mapping[str, str], pod_id: str, key: str) -> str:
    """Ask GraphQL; what it said, in a few words."""
    address = environment.get("SCF_RUNPOD_GRAPHQL") or GRAPHQL
    body = json.dumps({"query": MUTATION, "variables": {"input": {"podId": pod_id}}}).encode()
    request = urllib.request.Request(address, data=body, method="POST")  # noqa: S310 - likewise
    request.add_header("Content-Type", "application/json")
    return f"GraphQL {_sent(request, key)}"


def end_cluster(environment: Mapping[str, str], pod_id: str, key: str) -> str:
    """Ask REST v2 which cluster this pod is in, and for that one's end; what it said."""
    address = environment.get("SCF_RUNPOD_REST") or REST
    asked = urllib.request.Request(f"{address}/pods/{pod_id}")  # noqa: S310 - likewise
    answer = bytearray()
    said = _sent(asked, key, answer)
    cluster_id = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        cluster_id = json.loads(answer)["cluster"]["id"]
    if not isinstance(cluster_id, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", cluster_id):
        return f"cluster unknown ({said})"
    request = urllib.request.Request(  # noqa: S310 - likewise
        f"{address}/clusters/{cluster_id}", method="DELETE"
    )
    return f"cluster {_sent(request, key)}"


def _sent(request: urllib.request.Request, key: str, body: bytearray | None = None) -> str:
    if request.type not in {"https", "http"}:
        return f"not sent by {request.type}"
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("User-Agent", "scf-pod-lease/1")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310 - above
            if body is not None:
                body += reply.read(ANSWER_MAX_BYTES)
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError) as error:
        return type(error).__name__


if __name__ == "__main__":
    sys.exit(main(os.environ, sys.stderr.write))
