"""Clusters of the double are as RunPod's documents say, and fail as their scripts say."""

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest

from fakes.runpod import openapi
from fakes.runpod.clusters import ClusterScript, variables
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import LOST_REPLY, NO_CAPACITY, TWICE, PodScript

BODY = {
    "name": "a",
    "type": "TRAINING",
    "compute": {"gpuTypeId": "NVIDIA RTX A4000", "gpuCountPerPod": 1, "podCount": 2},
    "image": "i",
}


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    with FakeRunpod() as provider:
        yield provider


@pytest.fixture
def http(provider: FakeRunpod) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {provider.key}"}
    with httpx.Client(base_url=provider.rest, headers=headers) as client:
        yield client


def members(http: httpx.Client) -> list[dict]:
    return http.get("/pods", params={"includeClusterPods": "true"}).json()["pods"]


def test_every_answer_is_as_the_document_says(provider: FakeRunpod, http: httpx.Client) -> None:
    openapi.required_document()
    provider.cluster_scripts.append(ClusterScript(unranked=1, late={1: 2}))
    created = http.post("/clusters", json=BODY)
    cluster_id = created.json()["id"]
    now = provider.now()
    span = {"startTime": (now - timedelta(hours=1)).isoformat(), "endTime": now.isoformat()}

    assert created.status_code == 201
    assert openapi.errors_of("Cluster", created.json()) == []
    for _ in range(4):
        for row in members(http):
            assert openapi.errors_of("Pod", row) == []
        assert openapi.errors_of("Cluster", http.get(f"/clusters/{cluster_id}").json()) == []
    answers = {
        "ListClustersResponse": http.get("/clusters"),
        "ListPodsResponse": http.get(f"/clusters/{cluster_id}/pods"),
        "ListClusterBillingResponse": http.get("/billing/clusters", params=span),
        "ErrorResponse": http.get("/clusters/none"),
    }
    for name, answer in answers.items():
        assert openapi.errors_of(name, answer.json()) == [], name


@pytest.mark.parametrize("extra", ["terminateAfter", "registry", "gpu", "cloud"])
def test_a_body_that_the_document_does_not_allow_is_refused(http: httpx.Client, extra: str) -> None:
    openapi.required_document()

    assert http.post("/clusters", json=BODY | {extra: "x"}).status_code == 422
    one = BODY | {"compute": {**BODY["compute"], "podCount": 1}}
    assert http.post("/clusters", json=one).status_code == 422


def test_members_are_listed_when_they_are_asked_for(http: httpx.Client) -> None:
    cluster_id = http.post("/clusters", json=BODY).json()["id"]

    assert http.get("/pods").json()["pods"] == []
    assert [row["cluster"] for row in members(http)] == [
        {"id": cluster_id, "rank": 0, "ip": "127.0.0.1"},
        {"id": cluster_id, "rank": 1, "ip": "127.0.0.1"},
    ]
    assert {row["cost"] for row in members(http)} == {0.25}


def test_a_member_ends_with_its_cluster_alone(provider: FakeRunpod, http: httpx.Client) -> None:
    cluster_id = http.post("/clusters", json=BODY).json()["id"]
    first = members(http)[0]["id"]

    assert http.delete(f"/pods/{first}").status_code == 409
    assert len(provider.alive()) == 2
    assert http.delete(f"/clusters/{cluster_id}").status_code == 204
    assert provider.alive() == provider.alive_clusters() == []
    assert http.delete(f"/clusters/{cluster_id}").status_code == 404


@pytest.mark.parametrize(("may", "status"), [(False, 401), (True, 204)])
def test_whether_a_members_key_ends_its_cluster_is_the_tests_choice(
    provider: FakeRunpod, http: httpx.Client, may: bool, status: int
) -> None:
    """It never ends another's."""
    provider.members_may_end = may
    ids = [http.post("/clusters", json=BODY).json()["id"] for _ in range(2)]
    pod = provider.all_clusters[0].members[1]
    key = {"Authorization": f"Bearer {provider.pod_key(pod.pod_id)}"}

    assert http.delete(f"/clusters/{ids[1]}", headers=key).status_code == 401
    assert http.delete(f"/clusters/{ids[0]}", headers=key).status_code == status


def test_members_may_come_late_or_never_and_know_their_rank_later(
    provider: FakeRunpod, http: httpx.Client
) -> None:
    provider.cluster_scripts.append(ClusterScript(late={1: 3}, unranked=1))
    provider.cluster_scripts.append(ClusterScript(late={1: None}))
    http.post("/clusters", json=BODY)

    seen = [[row["cluster"]["rank"] for row in members(http)] for _ in range(4)]
    assert seen == [[None], [0], [0, 1], [0, 1]]

    http.post("/clusters", json=BODY)
    for _ in range(5):
        assert len(members(http)) == 3


def test_a_cluster_is_shown_late_and_may_live_on_as_may_a_member(
    provider: FakeRunpod, http: httpx.Client
) -> None:
    provider.cluster_scripts.append(ClusterScript(unseen=1, deaf=2))
    provider.pod_scripts.extend([PodScript(), PodScript(deaf=2)])
    cluster_id = http.post("/clusters", json=BODY).json()["id"]
    shown = lambda: len(http.get("/clusters").json()["clusters"])  # noqa: E731

    assert [shown(), shown()] == [0, 1]
    http.delete(f"/clusters/{cluster_id}")
    assert [shown(), shown()] == [1, 0]
    assert [len(members(http)) for _ in range(3)] == [1, 0, 0]


def test_a_member_that_was_deleted_by_hand_is_missing(
    provider: FakeRunpod, http: httpx.Client
) -> None:
    http.post("/clusters", json=BODY)
    provider.delete_by_hand(members(http)[1]["id"])

    assert [row["cluster"]["rank"] for row in members(http)] == [0]
    assert http.get("/clusters").json()["clusters"][0]["pods"]["total"] == 1


@pytest.mark.parametrize(("fault", "made"), [(NO_CAPACITY, 0), (LOST_REPLY, 1), (TWICE, 2)])
def test_a_fault_of_the_order_has_the_effect_that_its_name_says(
    provider: FakeRunpod, http: httpx.Client, fault: object, made: int
) -> None:
    provider.script("create cluster", fault)
    try:
        http.post("/clusters", json=BODY)
    except httpx.RemoteProtocolError:
        assert fault is LOST_REPLY

    assert len(provider.alive_clusters()) == made
    assert len(provider.alive()) == 2 * made


def test_all_members_cost(provider: FakeRunpod, http: httpx.Client) -> None:
    cluster_id = http.post("/clusters", json=BODY).json()["id"]
    provider.pass_time(3600)

    assert provider.spent_usd() == pytest.approx(0.5, abs=0.01)
    now = provider.now().isoformat()
    bill = http.get("/billing/clusters", params={"startTime": now, "endTime": now}).json()
    assert [row["clusterId"] for row in bill["records"]] == [cluster_id]
    assert bill["metadata"]["totals"]["totalAmount"] == pytest.approx(0.5, abs=0.01)
    assert (
        http.get("/billing/pods", params={"startTime": now, "endTime": now}).json()["records"] == []
    )


def test_each_member_is_told_where_it_stands(provider: FakeRunpod, http: httpx.Client) -> None:
    http.post("/clusters", json=BODY)
    members(http), members(http)
    told = variables(provider.all_clusters[0].members[1])

    assert (told["NODE_RANK"], told["NUM_NODES"], told["WORLD_SIZE"]) == ("1", "2", "2")
    assert told["HOST_NODE_ADDR"] == "127.0.0.1:29500"
