"""The JSON API: what it answers, what it refuses, and that nothing that comes in breaks it."""

import asyncio
import json

import pytest
import schemathesis
from asking import REQUEST
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from demo.server import HEADERS, MAX_BODY, make_app

LOCAL = {"host": "127.0.0.1"}


@pytest.fixture(scope="module")
def app(engine):
    return make_app(engine)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def sent_events(text):
    return [
        (
            part.split("\n")[0].removeprefix("event: "),
            json.loads(part.split("\n")[1].removeprefix("data: ")),
        )
        for part in text.strip().split("\n\n")
    ]


def test_an_answer_is_one_object_and_the_same_as_events(client):
    body = {
        "request": REQUEST,
        "targets": {"delay_ms": 1, "throughput_mbps": 5, "ber": 1e-3},
        "rivals": ["sturdiest"],
    }
    whole = client.post("/v1/orchestrate", json=body)
    assert whole.status_code == 200 and whole.json()["verdict"]["targets"] == {
        "delay_ms": 1,
        "throughput_mbps": 5,
        "ber": 1e-3,
    }
    parts = client.post("/v1/orchestrate/events", json=body)
    assert parts.headers["content-type"].startswith("text/event-stream")
    events = sent_events(parts.text)
    assert events[0] == ("queued", {"ahead": 0}) and events[-1][0] == "done"
    for name in ("answer", "workflow", "verdict"):
        assert dict(events)[name] == whole.json()[name]
    assert [payload for name, payload in events if name == "token"] == whole.json()["token"]


def test_every_answer_has_the_headers_that_keep_others_out(client):
    for response in (
        client.get("/"),
        client.get("/static/app.js"),
        client.get("/v1/options"),
        client.post("/v1/orchestrate", json={}),
        client.get("/no"),
    ):
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/", "/v1/options"])
def test_another_sites_name_for_this_machine_is_refused(client, path):
    assert client.get(path, headers={"host": "evil.example"}).status_code == 400


def test_a_form_of_another_site_cannot_ask(client):
    body = json.dumps({"request": REQUEST})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert (
            client.post("/v1/orchestrate", content=body, headers={"content-type": kind}).status_code
            == 422
        )


@pytest.mark.parametrize(
    "body, field",
    [
        ({}, "request"),
        ({"request": "x" * 1001}, "request"),
        ({"request": 3}, "request"),
        ({"request": "a", "more": 1}, "more"),
        ({"request": "a", "scenario": {"snr_db": 81}}, "scenario.snr_db"),
        ({"request": "a", "scenario": {"channel": "tdl-z"}}, "scenario.channel"),
        ({"request": "a", "scenario": {"absent": ["no.such"]}}, "scenario.absent"),
        ({"request": "a", "temperature": -1}, "temperature"),
        ({"request": "a", "targets": {"delay_ms": 1}}, "targets.throughput_mbps"),
        ({"request": "a", "seed": 2**31}, "seed"),
        ({"request": "a", "model": "../../etc/passwd"}, "model"),
        ({"request": "a", "rivals": ["me"]}, "rivals"),
        ({"request": "   "}, "request"),
        ({"request": "\x1c\x85"}, "request"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/orchestrate", "/v1/orchestrate/events"])
def test_a_wrong_field_is_named_in_one_line(client, path, body, field):
    response = client.post(path, json=body)
    assert (
        response.status_code == 422
        and field in response.json()["detail"]
        and "\n" not in response.json()["detail"]
    )


@pytest.mark.parametrize(
    "body",
    [
        '{"request": "a", "temperature": NaN}',
        '{"request": "a", "scenario": {"snr_db": Infinity}}',
        '{"request": "a", "seed": 1e999}',
        '{"request": "\\ud800"}',
        '{"request": "a"',
        "[]",
        "",
        "\x00",
    ],
)
def test_what_is_no_json_or_no_number_is_refused(client, body):
    response = client.post(
        "/v1/orchestrate", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422) and response.json()["detail"]


def test_a_long_body_is_refused_before_it_is_read(client):
    assert (
        client.post(
            "/v1/orchestrate",
            content=b" " * (MAX_BODY + 1),
            headers={"content-type": "application/json"},
        ).status_code
        == 413
    )


def test_a_request_that_fails_ends_itself_alone(client, engine, monkeypatch):
    def broken(*_):
        yield "prompt", {}
        raise RuntimeError("the twin\nis gone")

    monkeypatch.setattr(engine, "play", broken)
    assert client.post("/v1/orchestrate", json={"request": "a"}).json() == {
        "detail": "RuntimeError: the twin is gone"
    }
    assert sent_events(client.post("/v1/orchestrate/events", json={"request": "a"}).text)[-1] == (
        "failed",
        {"message": "RuntimeError: the twin is gone"},
    )
    monkeypatch.undo()
    assert client.post("/v1/orchestrate", json={"request": REQUEST}).status_code == 200


def test_who_asks_for_too_much_waits_outside(app):
    """Six at once from one visitor: one is served, three wait, two are told so."""
    import httpx

    async def check():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
        ) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/orchestrate", json={"request": REQUEST}) for _ in range(6))
            )
        return sorted(answer.status_code for answer in answers)

    assert asyncio.run(check()) == [200] * 4 + [429] * 2


@pytest.mark.parametrize(
    "path",
    [
        "/static/../engine.py",
        "/static/%2e%2e/engine.py",
        "/static/..%2fengine.py",
        "/static//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_pages_files(client, path):
    assert client.get(path).status_code == 404


def test_openapi_has_the_limits_of_the_twin(client):
    schema = client.get("/openapi.json").json()
    snr = schema["components"]["schemas"]["Scenario"]["properties"]["snr_db"]
    assert (snr["minimum"], snr["maximum"]) == (-40, 80)


@pytest.mark.parametrize(
    "operation",
    ["GET /v1/options", "POST /v1/drift", "POST /v1/orchestrate", "POST /v1/orchestrate/events"],
)
def test_whatever_comes_in_gets_what_the_schema_promises(app, operation):
    """Bodies of the schema and such as break it, through model and twin; answers are checked
    against the schema.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=LOCAL)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    method, _, path = operation.partition(" ")
    for mode in modes if method == "POST" else modes[:1]:

        @settings(
            max_examples=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        @given(schema[path][method].as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(
                headers=LOCAL, timeout=120
            )  # an oracle's search beside other tests

        check()
