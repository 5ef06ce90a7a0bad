"""The dashboard's process: archive, feed and web server, from start to stop."""

import ipaddress
import os
import signal
import socket
from collections.abc import Callable

import structlog
import uvicorn

from station import systemd
from station.dashboard import DashboardError
from station.dashboard.app import create_app
from station.dashboard.archive import Archive
from station.dashboard.feed import Feed
from station.dashboard.fleet import Fleet
from station.settings import DashboardSettings
from station.state import lock_folder

log = structlog.get_logger(__name__)

_STOP_SECONDS = 3  # for answers under way
_ADVICE = "is the dashboard running already? Stop it, or set `dashboard.state` to a folder of its own"


def serve(settings: DashboardSettings) -> None:
    """Show the stations until SIGTERM or SIGINT.

    Raises:
        SettingsError, DashboardError, StateError: it cannot work so.
    """
    section = settings.dashboard
    folder = section.state_folder
    lock = lock_folder(folder, "dashboard", _ADVICE)
    archive = Archive(folder, section.keep_mib, section.keep_days)
    try:
        fleet = Fleet()
        feed = Feed(settings, fleet, archive)
        app = create_app(settings, fleet, archive, feed)
        with _listen(section.host, section.port) as wire:
            host, port = wire.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{port}/"
            if not _is_local(host) and section.users_file is not None:
                log.warning(
                    "passwords would travel in clear; serve the page behind a proxy with TLS (docs/dashboard.md)"
                )
            config = uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # Access reads them, from proxies that it knows
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
            # uvicorn raises the signal that ended it once more: a service that is told to stop has not failed.
            signal.signal(signal.SIGTERM, lambda *_: None)
            _Server(config, address, app.state.end_streams).run(sockets=[wire])
    finally:
        archive.close()
        if lock is not None:
            os.close(lock)


class _Server(uvicorn.Server):
    """Says when it serves, and to systemd that it lives."""

    def __init__(self, config: uvicorn.Config, address: str, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._address = address
        self._end_streams = end_streams
        self._notifier = systemd.from_environment()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("serving", address=self._address)
            print(f"open {self._address}  (Ctrl-C ends)", flush=True)
            self._notifier.notify(READY=1, STATUS=f"serving {self._address}")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, in the loop that answers the requests."""
        if self._notifier.watchdog_seconds and counter % max(1, int(self._notifier.watchdog_seconds * 10 / 3)) == 0:
            self._notifier.notify(WATCHDOG=1)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notifier.notify(STOPPING=1)
        self._end_streams()  # else it would wait for browsers that listen for ever
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        wire = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DashboardError(f"dashboard.host = {host!r}: no address of this machine: {error.strerror}") from error
    try:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.bind(address)
        wire.listen(128)
    except OSError as error:
        wire.close()
        raise DashboardError(
            f"dashboard.host = {host!r}, dashboard.port = {port}: cannot listen there: {error.strerror}"
        ) from error
    return wire


def _is_local(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback
