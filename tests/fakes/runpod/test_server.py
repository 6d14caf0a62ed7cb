"""The double of RunPod is as RunPod's OpenAPI document says, and its faults are what they are called."""

from datetime import timedelta

import httpx
import pytest

from fakes.runpod import openapi
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import (
    BROKEN,
    GARBAGE,
    LOST_REPLY,
    LOST_REQUEST,
    NO_CAPACITY,
    TWICE,
    PodScript,
)

BODY = {"name": "a", "image": "i", "gpu": {"id": "NVIDIA RTX A4000", "count": 1}}


@pytest.fixture
def provider():
    with FakeRunpod() as provider:
        yield provider


@pytest.fixture
def http(provider: FakeRunpod):
    with httpx.Client(
        base_url=provider.rest, headers={"Authorization": f"Bearer {provider.key}"}
    ) as client:
        yield client


@pytest.mark.parametrize("script", [PodScript(), PodScript(has_ports=False), PodScript(num_gpus=0)])
def test_every_answer_is_as_the_document_says(
    provider: FakeRunpod, http: httpx.Client, script: PodScript
) -> None:
    openapi.required_document()
    provider.pod_scripts.append(script)
    created = http.post("/pods", json=BODY)
    pod_id = created.json()["id"]
    now = provider.now()
    span = {"startTime": (now - timedelta(hours=1)).isoformat(), "endTime": now.isoformat()}
    answers = {
        "ListPodsResponse": http.get("/pods"),
        "ListGpuTypesResponse": http.get(
            "/catalog/gpus", params={"include": "AVAILABILITY", "product": "POD"}
        ),
        "ListPodBillingResponse": http.get("/billing/pods", params=span),
        "SshKeys": http.get("/account/ssh-keys"),
        "ErrorResponse": http.get("/pods/none"),
    }

    assert created.status_code == 201
    assert openapi.errors_of("Pod", created.json()) == []
    for _ in range(3):
        assert openapi.errors_of("Pod", http.get(f"/pods/{pod_id}").json()) == []
    for name, answer in answers.items():
        assert openapi.errors_of(name, answer.json()) == [], name


def test_a_body_that_the_document_does_not_allow_is_refused(http: httpx.Client) -> None:
    openapi.required_document()

    answer = http.post("/pods", json=BODY | {"interruptible": True})

    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_wrong_key_is_refused(provider: FakeRunpod) -> None:
    assert httpx.get(f"{provider.rest}/pods").status_code == 401


@pytest.mark.parametrize(
    ("fault", "made"),
    [(LOST_REQUEST, 0), (LOST_REPLY, 1), (NO_CAPACITY, 0), (BROKEN, 0), (GARBAGE, 0)],
)
def test_a_fault_has_the_effect_that_its_name_says(
    provider: FakeRunpod, http: httpx.Client, fault: object, made: int
) -> None:
    """And only once: the next call goes well."""
    provider.script("create", fault)
    try:
        answer = http.post("/pods", json=BODY)
        assert answer.status_code != 201
    except httpx.RemoteProtocolError:
        assert fault in {LOST_REPLY, LOST_REQUEST}

    assert len(provider.alive()) == made
    assert http.post("/pods", json=BODY).status_code == 201


def test_a_repeated_delivery_makes_two_pods_and_one_answer(
    provider: FakeRunpod, http: httpx.Client
) -> None:
    provider.script("create", TWICE)

    assert http.post("/pods", json=BODY).status_code == 201
    assert [pod.name for pod in provider.alive()] == ["a", "a"]


def test_a_pod_is_shown_late_and_runs_later(provider: FakeRunpod, http: httpx.Client) -> None:
    provider.pod_scripts.append(PodScript(unseen=2, until_running=2))
    http.post("/pods", json=BODY)

    seen = [[pod["status"] for pod in http.get("/pods").json()["pods"]] for _ in range(6)]

    assert seen == [[], [], ["PROVISIONING"], ["STARTING"], ["RUNNING"], ["RUNNING"]]


def test_a_stuck_pod_never_runs(provider: FakeRunpod, http: httpx.Client) -> None:
    provider.pod_scripts.append(PodScript(until_running=None))
    http.post("/pods", json=BODY)

    for _ in range(10):
        pods = http.get("/pods").json()["pods"]
    assert pods[0]["status"] == "STARTING"


def test_a_terminated_pod_may_live_on_for_a_while(provider: FakeRunpod, http: httpx.Client) -> None:
    provider.pod_scripts.append(PodScript(deaf=3))
    pod_id = http.post("/pods", json=BODY).json()["id"]

    assert http.delete(f"/pods/{pod_id}").status_code == 204
    seen = [http.get(f"/pods/{pod_id}").status_code for _ in range(4)]

    assert seen == [200, 200, 404, 404]


def test_time_costs_and_ends_pods(provider: FakeRunpod, http: httpx.Client) -> None:
    """By the hour's price; the lease ends a pod; so does an empty account."""
    end = (provider.now() + timedelta(hours=2)).isoformat()
    given = {
        "name": "leased",
        "imageName": "i",
        "cloudType": "SECURE",
        "gpuTypeId": "NVIDIA RTX A4000",
        "gpuCount": 1,
        "containerDiskInGb": 1,
        "ports": "22/tcp",
        "env": [],
        "terminateAfter": end,
    }
    query = {"query": "mutation { podFindAndDeployOnDemand }", "variables": {"input": given}}
    http.post(provider.graphql, json=query)
    http.post("/pods", json=BODY)

    provider.pass_time(3600)
    assert provider.spent_usd() == pytest.approx(0.5, abs=0.01)
    provider.pass_time(3600)
    assert [pod.name for pod in provider.alive()] == ["a"]
    provider.balance_usd = 0.1
    provider.pass_time(3600)
    assert provider.alive() == []
    assert http.post("/pods", json=BODY).status_code == 402


def test_the_rate_limit_is_said_and_kept(http: httpx.Client, provider: FakeRunpod) -> None:
    provider.calls_per_minute = 2
    answers = [http.get("/pods") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert '"minute";r=0' in answers[1].headers["RateLimit"]
    assert 0 < int(answers[2].headers["Retry-After"]) <= 60
    provider.pass_time(61)
    assert http.get("/pods").status_code == 200
