"""The web application: what a browser may ask, and who may. docs/dashboard.md has the list of addresses.

Handlers run in the event loop and leave all that touches the disk or waits for a station to threads.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from station import __version__
from station.dashboard import charting
from station.dashboard.access import COOKIE, MAX_PASSWORD, SESSION_SECONDS, Access, RefusedError, Viewer
from station.dashboard.archive import FAILURES, Archive, Kind
from station.dashboard.events import MAX_LISTENERS, PING_SECONDS, RETRY_MS, Events, encode
from station.dashboard.export import export_zip
from station.dashboard.feed import CommandRefusedError, Feed
from station.dashboard.fleet import Fleet
from station.dashboard.intake import is_id
from station.dashboard.records import AlertRecord, Judgement
from station.messages import VERBS, Feedback, Verb
from station.settings import DashboardSettings

log = structlog.get_logger(__name__)

STATIC = Path(__file__).parent / "static"
TELL_SECONDS = 0.25  # a station is told of at most so often
LOOK_SECONDS = 1.0  # for stations that have fallen silent
HOUSE_SECONDS = 30.0
STALLED_SECONDS = 60.0  # after which a browser that takes nothing is cut off
RIGHTS_SECONDS = 30.0  # who listens is asked again so often whether they may
MAX_BODY = 16 * 2**10  # bytes of a request
MAX_PAGE = 200  # alerts
_PAGE = 50
# uPlot sets the style of its elements from its script, which these rules allow; styles in the markup they do not.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class _Login(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    user: str = Field(min_length=1, max_length=100)
    password: str = Field(min_length=1, max_length=MAX_PASSWORD)


class _CommandBody(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    threshold: float | None = Field(default=None, gt=0, le=1e9)


class _FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: str
    note: str = ""


def create_app(settings: DashboardSettings, fleet: Fleet, archive: Archive, feed: Feed) -> Starlette:
    """The application; it starts and stops the feed.

    Raises:
        SettingsError, DashboardError: see ``Access``.
    """
    api = _Api(settings, fleet, archive, feed)
    station = "/api/stations/{site}/{line}/{name}"
    alert = "/api/alerts/{site}/{line}/{name}/{id}"
    routes = [
        Route("/healthz", api.healthz),
        Route("/api/me", api.me),
        Route("/api/login", api.log_in, methods=["POST"]),
        Route("/api/logout", api.log_out, methods=["POST"]),
        Route("/api/events", api.events),
        Route("/api/stations", api.stations),
        Route(station, api.station),
        Route(f"{station}/scores", api.scores),
        Route(f"{station}/recent-scores", api.recent_scores),
        Route(f"{station}/picture", api.station_picture),
        Route(f"{station}/watching", api.watching, methods=["POST"]),
        Route(f"{station}/commands/{{verb}}", api.command, methods=["POST"]),
        Route("/api/alerts", api.alerts),
        Route(alert, api.alert),
        Route(f"{alert}/image", api.alert_image),
        Route(f"{alert}/frame", api.alert_frame),
        Route(f"{alert}/feedback", api.feedback, methods=["POST"]),
        Route("/api/export.zip", api.export),
        Mount("/static", _Static(directory=STATIC, check_dir=False)),
        *(
            Route(path, _shell)
            for path in (
                "/",
                "/login",
                "/alerts",
                "/stations/{site}/{line}/{name}",
                "/alerts/{site}/{line}/{name}/{id}",
            )
        ),
    ]
    app = Starlette(
        routes=routes,
        lifespan=api.lifespan,
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _not_found,
            ValidationError: _invalid,
            CommandRefusedError: _command_refused,
            **dict.fromkeys(FAILURES, _disk),
            Exception: _internal,
        },
    )
    app.state.end_streams = api.end_streams
    app.add_middleware(_Hosts, access=api.access)
    app.add_middleware(_Headers)
    return app


class _Api:
    def __init__(self, settings: DashboardSettings, fleet: Fleet, archive: Archive, feed: Feed) -> None:
        self.access = Access(settings.dashboard)
        self._folder = settings.dashboard.state_folder
        self._fleet = fleet
        self._archive = archive
        self._feed = feed
        self._events = Events()
        self._exporting = asyncio.Lock()

    # --- what runs beside the requests ---

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Feed and housekeeping run as long as the application does."""
        loop = asyncio.get_running_loop()

        def in_loop(call: Callable[..., None], *given: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: the last messages of a dashboard that stops
                loop.call_soon_threadsafe(call, *given)

        self._feed.on_alert = lambda record: in_loop(self._tell_alert, record)
        self._feed.on_removed = lambda path: in_loop(self._events.send, "removed", {"path": path})
        self._feed.on_connection = lambda: in_loop(self._tell_connection)
        await run_in_threadpool(self._archive.sweep)
        await run_in_threadpool(self._feed.start)
        tasks = [
            asyncio.create_task(self._every(TELL_SECONDS, self._tell_stations)),
            asyncio.create_task(self._every(LOOK_SECONDS, self._look_again)),
            asyncio.create_task(self._every(HOUSE_SECONDS, self._keep_house)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await run_in_threadpool(self._feed.stop)
            await run_in_threadpool(self._feed.finish)

    def end_streams(self) -> None:
        """Let the server stop: it waits for every answer to end."""
        self._events.close()

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await step()
            except Exception:  # one bad step must not end all that the page shows
                log.exception("the dashboard's own mistake")

    async def _tell_stations(self) -> None:
        changes = self._fleet.changes()
        if not len(self._events):
            return
        now = time.time()
        for path, parts in changes.items():
            view = self._fleet.view(path, now, parts)
            if view is not None:
                self._events.send("station", view)

    async def _look_again(self) -> None:
        self._fleet.look_again(time.time())
        await run_in_threadpool(self._feed.ask_previews)
        await run_in_threadpool(self._feed.retry)

    async def _keep_house(self) -> None:
        await run_in_threadpool(self._feed.keep_house)

    def _tell_alert(self, record: AlertRecord) -> None:
        self._events.send("alert", record.view())

    def _tell_connection(self) -> None:
        self._events.send("me", {"broker": self._feed.broker})

    # --- who ---

    async def healthz(self, _request: Request) -> Response:
        """Whether the dashboard lives; whether it has its broker is in /api/me."""
        return PlainTextResponse("ok\n", headers={"cache-control": "no-store"})

    async def me(self, request: Request) -> Response:
        """Who asks, what they may, and how the dashboard does."""
        return _json(self._me(self.access.viewer(request)))

    def _me(self, viewer: Viewer) -> dict[str, Any]:
        unknown = {"where": "", "connected": True, "trouble": None}  # to who may not look
        return {
            "user": viewer.user,
            "may_act": viewer.may_act,
            "may_look": viewer.may_look,
            "login": self.access.has_login,
            "csrf": self.access.token(viewer),
            "version": __version__ if viewer.may_look else "",
            "broker": self._feed.broker if viewer.may_look else unknown,
        }

    async def log_in(self, request: Request) -> Response:
        """User and password for a session."""
        self.access.demand_own_page(request, self.access.viewer(request))
        body = _Login.model_validate_json(await _body(request))
        address = self.access.address(request)
        cookie = await run_in_threadpool(self.access.log_in, body.user, body.password, address)
        secure = self.access.is_secure(request)
        request.cookies[COOKIE] = cookie
        response = _json(self._me(self.access.viewer(request)))
        response.set_cookie(
            COOKIE, cookie, max_age=SESSION_SECONDS, path="/", secure=secure, httponly=True, samesite="strict"
        )
        return response

    async def log_out(self, request: Request) -> Response:
        """The browser forgets the session."""
        self.access.demand_own_page(request, self.access.viewer(request))
        request.cookies.pop(COOKIE, None)
        response = _json(self._me(self.access.viewer(request)))
        response.delete_cookie(
            COOKIE, path="/", secure=self.access.is_secure(request), httponly=True, samesite="strict"
        )
        return response

    def _demand_look(self, request: Request) -> Viewer:
        viewer = self.access.viewer(request)
        if not viewer.may_look:
            raise RefusedError("log-in: only who has logged in may look", 401)
        return viewer

    def _demand_act(self, request: Request) -> str:
        """Name of the user that may act."""
        viewer = self._demand_look(request)
        if request.method != "GET":
            self.access.demand_own_page(request, viewer)
        if not viewer.may_act or viewer.user is None:
            words = "only operators may do that" if viewer.user else "log in as an operator to do that"
            raise RefusedError(f"not-allowed: {words}", 403)
        return viewer.user

    # --- stations ---

    async def stations(self, request: Request) -> Response:
        """All of them."""
        self._demand_look(request)
        return _json({"stations": self._fleet.views(time.time())})

    async def station(self, request: Request) -> Response:
        """One."""
        self._demand_look(request)
        view = self._fleet.view(_path(request), time.time())
        return _json(view) if view is not None else _missing("no such station")

    async def scores(self, request: Request) -> Response:
        """For the chart: the highest score of each span of time, and the alerts."""
        self._demand_look(request)
        path = self._known(request)
        minutes = _number(request, "minutes", 60, charting.MAX_MINUTES)
        return _json(await run_in_threadpool(charting.chart, self._fleet, self._archive, path, minutes, time.time()))

    async def recent_scores(self, request: Request) -> Response:
        """The last of them, one by one."""
        self._demand_look(request)
        found = self._fleet.recent_scores(_path(request))
        return _json({"scores": found[0], "threshold": found[1]}) if found else _missing("no such station")

    async def station_picture(self, request: Request) -> Response:
        """The last one, JPEG."""
        self._demand_look(request)
        path = self._known(request)
        snapshot, pictured = self._fleet.snapshot(path), self._fleet.pictured(path)
        if snapshot is not None and (pictured is None or snapshot[1] >= pictured[1]):
            return _picture(request, snapshot[0], "image/jpeg", f"{snapshot[1]:.3f}")
        if pictured is not None:
            return await self._alert_picture(request, path, pictured[0].id, "image")
        return _missing("no picture yet")

    async def watching(self, request: Request) -> Response:
        """Somebody looks at this station."""
        self.access.demand_own_page(request, self._demand_look(request))
        self._feed.watch(self._known(request))
        return Response(status_code=204)

    async def command(self, request: Request) -> Response:
        """Send a command and wait for the station's answer."""
        user = self._demand_act(request)
        path, verb = self._known(request), request.path_params["verb"]
        if verb not in VERBS:
            raise RefusedError(f"unknown-command: known are {', '.join(VERBS)}", 404)
        body = _CommandBody.model_validate_json(await _body(request) or b"{}")
        if (body.threshold is None) == (verb == "set-threshold"):
            raise RefusedError("invalid: threshold belongs to set-threshold, and to it alone", 422)
        reply = await run_in_threadpool(self._feed.command, path, cast("Verb", verb), user, body.threshold)
        return _json({"ok": reply.ok, "error": reply.error, "result": reply.result})

    # --- alerts ---

    async def alerts(self, request: Request) -> Response:
        """A page of them, newest first."""
        self._demand_look(request)
        query = request.query_params
        state, verdict = query.get("state"), query.get("verdict")
        if state not in (None, "open", "closed"):
            raise RefusedError("invalid: state is open or closed", 422)
        if verdict not in (None, "false-alarm", "confirmed", "none"):
            raise RefusedError("invalid: verdict is false-alarm, confirmed or none", 422)
        limit = round(_number(request, "limit", _PAGE, MAX_PAGE))
        station, before = query.get("station"), _cursor(query.get("before"))

        def find() -> tuple[list[AlertRecord], tuple[float, int] | None]:
            return self._archive.alerts(station=station, state=state, verdict=verdict, before=before, limit=limit)

        found, end = await run_in_threadpool(find)
        return _json(
            {
                "alerts": [record.view(patches=False) for record in found],
                "next": f"{end[0]!r}_{end[1]}" if end is not None else None,
            }
        )

    async def alert(self, request: Request) -> Response:
        """One."""
        self._demand_look(request)
        record = await run_in_threadpool(self._archive.alert, _path(request), _id(request))
        return _json(record.view()) if record is not None else _missing("no such alert; or it was let go")

    async def alert_image(self, request: Request) -> Response:
        """Its picture with heatmap and boxes, JPEG."""
        self._demand_look(request)
        return await self._alert_picture(request, _path(request), _id(request), "image")

    async def alert_frame(self, request: Request) -> Response:
        """Its frame as the camera gave it, PNG."""
        self._demand_look(request)
        return await self._alert_picture(request, _path(request), _id(request), "frame")

    async def _alert_picture(self, request: Request, path: str, id_: str, kind: Kind) -> Response:
        def find() -> tuple[bytes, str] | None:
            file = self._archive.picture(path, id_, kind)
            with suppress(FileNotFoundError):
                if file is not None:
                    return file.read_bytes(), f"{file.stat().st_mtime_ns:x}"
            return None

        found = await run_in_threadpool(find)
        if found is None:
            return _missing("no such picture; or it was let go")
        return _picture(request, found[0], "image/jpeg" if kind == "image" else "image/png", found[1])

    async def feedback(self, request: Request) -> Response:
        """Judge an alert."""
        user = self._demand_act(request)
        body = _FeedbackBody.model_validate_json(await _body(request))
        path, id_ = _path(request), _id(request)
        message = Feedback.model_validate(
            {"alert": id_, "verdict": body.verdict, "by": user, "note": body.note, "at": datetime.now(timezone.utc)}
        )
        judgement = Judgement.of(message, published=False)
        record = await run_in_threadpool(self._feed.judge, path, id_, judgement)
        return _json(record.view()) if record is not None else _missing("no such alert; or it was let go")

    async def export(self, request: Request) -> Response:
        """What was judged, as a folder in a zip file."""
        self._demand_act(request)
        station = request.query_params.get("station")
        async with self._exporting:  # it may be large: one after the other
            path = await run_in_threadpool(export_zip, self._archive, self._folder, station)
        return FileResponse(
            path,
            media_type="application/zip",
            filename="feedback.zip",
            headers={"cache-control": "no-store"},
            background=BackgroundTask(path.unlink, missing_ok=True),
        )

    # --- as it happens ---

    async def events(self, request: Request) -> Response:
        """Server-sent events, as long as the browser listens."""
        self._demand_look(request)
        if len(self._events) >= MAX_LISTENERS:
            raise RefusedError("busy: too many pages are open", 503, retry_after=10)

        async def stream() -> AsyncIterator[bytes]:
            listener = self._events.join()
            try:
                yield encode("me", {"broker": self._feed.broker}, retry=RETRY_MS)
                asked = time.monotonic()
                async for event in listener.events():
                    if time.monotonic() > asked + RIGHTS_SECONDS:
                        asked = time.monotonic()
                        if not self.access.viewer(request).may_look:  # the session is over
                            return
                    yield event
            finally:
                self._events.leave(listener)

        return _Stream(stream(), ping=PING_SECONDS, send_timeout=STALLED_SECONDS)

    def _known(self, request: Request) -> str:
        path = _path(request)
        if path not in self._fleet:
            raise RefusedError("not-found: no such station", 404)
        return path


class _Stream(EventSourceResponse):
    """Ends where the browser takes nothing any more, which is no fault of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a browser takes no more events; cut off")


class _Static(StaticFiles):
    """The page's own files: asked for anew each time, and sent only if they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


async def _shell(_request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


class _Headers:
    """What every answer carries."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if scope["path"].startswith("/api/") and "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class _Hosts:
    """Refuses names that may not be ours."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._access.demand_known_host(Request(scope))
            except RefusedError as error:
                await _refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


# --- requests and answers ---


def _path(request: Request) -> str:
    levels = [request.path_params[level] for level in ("site", "line", "name")]
    if not all(map(is_id, levels)):
        raise RefusedError("not-found: no such station", 404)
    return "/".join(levels)


def _id(request: Request) -> str:
    id_: str = request.path_params["id"]
    if not is_id(id_):
        raise RefusedError("not-found: no such alert", 404)
    return id_


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RefusedError(f"too-large: at most {MAX_BODY} bytes", 413)
    return body


def _number(request: Request, name: str, default: float, most: float) -> float:
    given = request.query_params.get(name)
    try:
        number = default if given is None else float(given)
    except ValueError:
        number = 0.0
    if not 1 <= number <= most:
        raise RefusedError(f"invalid: {name} is a number from 1 to {most:g}", 422)
    return number


def _cursor(given: str | None) -> tuple[float, int] | None:
    if given is None:
        return None
    time_, _, row = given.partition("_")
    with suppress(ValueError):
        opened, number = float(time_), int(row[:20])
        if math.isfinite(opened) and 0 <= number < 2**63:
            return opened, number
    raise RefusedError("invalid: before is what `next` said", 422)


def _json(value: object, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status)


def _missing(words: str) -> Response:
    return _json({"error": f"not-found: {words}"}, 404)


def _picture(request: Request, data: bytes, media_type: str, version: str) -> Response:
    """Kept by the browser and asked for anew: who may not look any more shall not."""
    headers = {"etag": f'"{version}"', "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def _refusal(error: RefusedError) -> Response:
    response = _json({"error": str(error)}, error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(round(error.retry_after) + 1)
    return response


async def _refused(_request: Request, error: Exception) -> Response:
    return _refusal(cast("RefusedError", error))


async def _not_found(_request: Request, error: Exception) -> Response:
    http = cast("HTTPException", error)
    code = {404: "not-found", 405: "method"}.get(http.status_code, "refused")
    response = _json({"error": f"{code}: {http.detail}"}, http.status_code)
    response.headers.update(http.headers or {})
    return response


async def _invalid(_request: Request, error: Exception) -> Response:
    first = cast("ValidationError", error).errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))[:80]
    return _json({"error": f"invalid: {where + ': ' if where else ''}{first['msg']}"}, 422)


async def _command_refused(_request: Request, error: Exception) -> Response:
    code = str(error).partition(":")[0]
    return _json({"error": str(error)}, 504 if code == "no-answer" else 503)


async def _disk(_request: Request, error: Exception) -> Response:
    log.error("the archive cannot be used", reason=str(error))
    return _json({"error": "disk: what is kept cannot be read or written; see the dashboard's log"}, 503)


async def _internal(_request: Request, _error: Exception) -> Response:
    return _json({"error": "internal: a mistake of the dashboard's; see its log"}, 500)
