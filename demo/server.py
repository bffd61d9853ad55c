"""The demo's server: a page, and a JSON API that OpenAPI describes at /openapi.json.

One job at a time, on a thread of its own; visitors queue fairly (`turns`). Everything that comes in
is checked against limits and goes out as JSON or as text nodes of the page. Other sites' pages
cannot ask: hosts are checked, and no CORS header is ever sent.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware

from demo.engine import MAX_STEP, Asked, Engine, Event
from demo.turns import Full, Turns
from experiments.world.reading import TARGET_RANGES
from rldtf_jax.config import ConfigError
from twin import Scenario
from twin.spec import SCENARIO_RULES
from twin.toolbox import MODULES

STATIC = os.path.join(os.path.dirname(__file__), "static")
LOOPBACK = ["127.0.0.1", "localhost"]
MAX_BODY = 1 << 16  # bytes
VISIBLE = r"[^\s\x00-\x1f\x7f-\xa0]"  # something that is no blank, in whoever's notion of one
VISITOR = "visitor"  # cookie
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src"
        " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def whole(low: int, high: int) -> Any:
    """A whole number as JSON Schema has it, where 3.0 is one; in [low, high]."""
    return Annotated[
        int,
        Field(ge=low, le=high),
        BeforeValidator(
            lambda value: int(value) if isinstance(value, float) and value.is_integer() else value
        ),
    ]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _field(name: str, rule: tuple) -> tuple[Any, Any]:
    """A scenario's field by its rule of twin.spec."""
    kind, *limits = rule
    default = getattr(Scenario(), name)
    if kind.__name__ == "_choice":
        return Literal[tuple(limits[0])], default
    return (
        whole(*limits)
        if isinstance(default, int)
        else Annotated[float, Field(ge=limits[0], le=limits[1])]
    ), default


ScenarioBody = create_model(
    "Scenario",
    __base__=Strict,
    absent=(
        Annotated[
            list[Literal[tuple(sorted(MODULES))]],
            Field(max_length=len(MODULES), json_schema_extra={"uniqueItems": True}),
        ],
        [],
    ),
    **{name: _field(name, rule) for name, rule in SCENARIO_RULES.items()},
)
TargetsBody = create_model(
    "Targets",
    __base__=Strict,
    __doc__="Milliseconds, Mbit/s, transport block error rate.",
    **{
        name: (Annotated[float, Field(gt=low, lt=high)], ...)
        for name, (low, high) in TARGET_RANGES.items()
    },
)


def orchestrate_body(engine: Engine) -> type[Strict]:
    """The body that asks this engine, every limit in its schema."""
    models, rivals = Literal[tuple(engine.models)], Literal[tuple(engine.rivals)]
    return create_model(
        "Orchestrate",
        __base__=Strict,
        __doc__="A request, the state of link and platform, and what beside the answer is wanted.",
        request=(
            Annotated[  # type: ignore[maybe-unrecognized-str-typeform]
                str, Field(min_length=1, max_length=1000, pattern=VISIBLE, description="in words")
            ],
            ...,
        ),
        scenario=(ScenarioBody, ScenarioBody()),
        targets=(
            TargetsBody | None,
            Field(None, description="null: the model infers the quality of service"),
        ),
        model=(models | None, Field(None, description="null: the newest")),
        temperature=(Annotated[float, Field(ge=0, le=5)], 0.0),
        seed=(whole(0, 2**31 - 1), 0),
        weights=(bool, Field(False, description="S of Eq. 4 by token, in two parts")),
        look=(
            bool,
            Field(
                False, description="a slot's channel and symbols, and blocks as they are counted"
            ),
        ),
        rivals=(
            Annotated[list[rivals], Field(max_length=8, json_schema_extra={"uniqueItems": True})],  # type: ignore[maybe-unrecognized-str-typeform]
            [],
        ),
    )


def _asked(body: Strict) -> Asked:
    values = body.model_dump()
    return Asked(**values | {"rivals": tuple(dict.fromkeys(values["rivals"]))})


class DriftBody(Strict):
    """A site that changes over time: its step-th state, with a request."""

    seed: whole(0, 2**31 - 1) = 0
    step: whole(0, MAX_STEP - 1) = 0


class Refusal(BaseModel):
    detail: str


REFUSALS = {
    422: {"model": Refusal, "description": "A field is wrong; the detail names it."},
    429: {"model": Refusal, "description": "Too many wait."},
    400: {"model": Refusal, "description": "The body is no JSON."},
    413: {"model": Refusal, "description": "The body is too large."},
}


def make_app(engine: Engine, hosts: list[str] = LOOPBACK) -> FastAPI:
    """The application over an engine. hosts: names by which it may be asked; ["*"]: any."""
    turns, Orchestrate = Turns(), orchestrate_body(engine)

    app = FastAPI(
        title="RLDTF demo",
        version="1",
        docs_url=None,
        redoc_url=None,
        description=(
            "A request in words becomes a physical-layer workflow; a digital twin says what it is"
            " worth."
        ),
    )
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"] if part != "body") or "body"
        return _refused(422, f"{where}: {first['msg']}")

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> FileResponse:
        response = FileResponse(os.path.join(STATIC, "index.html"))
        if VISITOR not in request.cookies:
            response.set_cookie(
                VISITOR, secrets.token_urlsafe(16), httponly=True, samesite="strict"
            )
        return response

    @app.get("/v1/options", summary="Models, rivals, limits, modules and requests to start from")
    async def options() -> dict[str, Any]:
        return engine.options()

    @app.post(
        "/v1/drift",
        responses=REFUSALS,
        summary="The state of a site that drifts, and what is asked of it then",
    )
    async def drift(body: DriftBody) -> dict[str, Any]:
        task = await asyncio.get_running_loop().run_in_executor(
            None, engine.drift, body.seed, body.step
        )
        return {
            "request": task.request,
            "scenario": dataclasses.asdict(task.scenario),
            "service": task.service,
            "targets": dict(zip(TARGET_RANGES, task.required)),
        }

    @app.post(
        "/v1/orchestrate",
        responses=REFUSALS,
        summary="Answers a request; events by name, of several a list",
    )
    async def orchestrate(request: Request, body: Annotated[Orchestrate, Body()]) -> JSONResponse:
        try:
            engine.checked(asked := _asked(body))
            found: dict[str, Any] = {"token": [], "rival": [], "progress": []}
            async for name, payload in served(asked, _visitor(request)):
                if name == "failed":
                    return _refused(500, payload["message"])
                if name in ("token", "rival", "progress"):
                    found[name].append(payload)
                elif name != "queued":
                    found[name] = payload
            return JSONResponse(found)
        except ConfigError as error:
            return _refused(422, str(error))
        except Full as error:
            return _refused(429, str(error))

    @app.post(
        "/v1/orchestrate/events",
        responses=REFUSALS | {200: {"content": {"text/event-stream": {}}}},
        response_class=StreamingResponse,
        summary=(
            "The same as server-sent events while they happen; `queued` tells how many are ahead"
        ),
    )
    async def events(request: Request, body: Annotated[Orchestrate, Body()]):
        try:
            engine.checked(asked := _asked(body))
        except ConfigError as error:
            return _refused(422, str(error))
        lines = _as_lines(served(asked, _visitor(request)))
        try:
            first = await anext(lines)  # joins the queue, or is refused
        except Full as error:
            return _refused(429, str(error))

        async def all_lines() -> AsyncIterator[str]:
            yield first
            async with contextlib.aclosing(lines):
                async for line in lines:
                    yield line

        return StreamingResponse(
            all_lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def served(asked: Asked, visitor: str) -> AsyncIterator[Event]:
        async with turns.turn(visitor) as ticket:
            yield "queued", {"ahead": await ticket.wait(0)}
            while ahead := await ticket.wait(0.5):
                yield "queued", {"ahead": ahead}
            played = engine.play(asked)
            try:
                while (
                    event := await asyncio.get_running_loop().run_in_executor(
                        engine.thread, next, played, None
                    )
                ) is not None:
                    yield event
            except Exception as error:  # one request must not end the server
                yield (
                    "failed",
                    {"message": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"},
                )

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _visitor(request: Request) -> str:
    return request.cookies.get(VISITOR, "")[:64] or (request.client.host if request.client else "")


def _refused(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail.encode("utf-8", "replace").decode()}, status)


async def _as_lines(events: AsyncIterator[Event]) -> AsyncIterator[str]:
    async with contextlib.aclosing(events):
        async for name, payload in events:
            yield f"event: {name}\ndata: {json.dumps(payload, allow_nan=False)}\n\n"


class Guard:
    """Headers of every answer, and a limit on what comes in."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, more = b"", True
        # bodies are short: read first, so that a long one is refused before anything happens
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_BODY:
                return await _refused(413, f"body: expected at most {MAX_BODY} bytes")(
                    scope, receive, send
                )
        given = False

        async def once():
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def with_headers(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        return await self.app(scope, once, with_headers)
