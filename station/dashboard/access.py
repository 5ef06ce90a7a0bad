"""Who may look and who may act: users with passwords, a reverse proxy's word, sessions, and forged requests.

A request is believed to come from our own page when it carries a token that only a page of the same origin can have
read, and when the browser says that the origin is the same.
"""

import getpass
import hashlib
import hmac
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection

from station.dashboard import DashboardError
from station.files import OutputError, write_file
from station.settings import DashboardSection, SettingsError

log = structlog.get_logger(__name__)

SESSION_SECONDS = 12 * 3600  # a shift and a half
COOKIE = "station-session"
MAX_PASSWORD = 1024  # characters
LEAST_PASSWORD = 8
_KEY = "session-key"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_NAME = 100  # characters of what a proxy says; `by` of a command takes as many
_FAILURES = 5  # wrong passwords in a row, of one address or for one user, before it has to wait
_FIRST_WAIT = 5.0  # seconds; doubled with each further one
_LONGEST_WAIT = 300.0
_REMEMBERED = 10_000  # addresses and users with wrong passwords
_VERIFICATIONS = 2  # at a time: each takes 64 MiB and a while
# Names that no public name server answers for, so that no foreign page can have them point to us.
_LOCAL_NAME = re.compile(r"[a-z0-9-]+(\.local)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who sends a request.

    Attributes:
        user: the name; None: nobody has logged in.
        session: what the token against forged requests is bound to.
    """

    user: str | None
    may_look: bool
    may_act: bool
    session: str


class RefusedError(Exception):
    """A request that is not served: ``code: words`` and the HTTP status.

    Attributes:
        retry_after: seconds to wait; None: waiting does not help.
    """

    def __init__(self, words: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.retry_after = retry_after


class Users:
    """The users file: a line ``name:hash`` each, argon2id. Read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            SettingsError: it cannot be read.
        """
        self._path = path
        self._hasher = PasswordHasher()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_VERIFICATIONS)
        self._nobody = self._hasher.hash(
            secrets.token_urlsafe()
        )  # so that an unknown user takes as long as a known one
        self._read_at: tuple[int, int] | None = None
        self._hashes: dict[str, str] = {}
        self._refresh()

    def verify(self, user: str, password: str) -> bool:
        """Whether that is the user's password; takes a while on purpose.

        Raises:
            RefusedError: too many are being verified.
        """
        self._reread()
        if not self._free.acquire(timeout=5):
            raise RefusedError("busy: too many are logging in at once", 429, retry_after=5)
        try:
            stored = self._hashes.get(user)
            try:
                good = self._hasher.verify(stored or self._nobody, password[:MAX_PASSWORD])
            except (Argon2Error, InvalidHashError):
                return False
            return good and stored is not None and len(password) <= MAX_PASSWORD
        finally:
            self._free.release()

    def mark(self, user: str) -> str | None:
        """Changes with the user's password; None: there is no such user."""
        self._reread()
        stored = self._hashes.get(user)
        return None if stored is None else hashlib.sha256(stored.encode()).hexdigest()[:16]

    def set(self, user: str, password: str) -> None:
        """Write the user's password; the file is the owner's alone.

        Raises:
            DashboardError: no fit name or password, or the file cannot be written.
        """
        if not _NAME.fullmatch(user):
            raise DashboardError(f"{user!r}: a user's name has letters, digits, '.', '_', '@' and '-', at most 64")
        if not LEAST_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise DashboardError(f"a password has at least {LEAST_PASSWORD} characters, and at most {MAX_PASSWORD}")
        hashes = self._hashes | {user: self._hasher.hash(password)}
        text = "".join(f"{name}:{hash_}\n" for name, hash_ in sorted(hashes.items()))
        try:
            before = self._path.stat() if self._path.exists() else None
            write_file(self._path, text.encode(), 0o600)
            if before is not None:  # root may write it for the service's user
                with suppress(PermissionError):
                    os.chown(self._path, before.st_uid, before.st_gid)
                self._path.chmod(before.st_mode & 0o660)
        except OutputError as error:
            raise DashboardError(str(error)) from error
        except OSError as error:
            raise DashboardError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._refresh()

    def _reread(self) -> None:
        try:
            self._refresh()
        except SettingsError as error:  # perhaps it is being replaced: those of before hold
            log.warning("the users file cannot be read", reason=str(error))

    def _refresh(self) -> None:
        with self._lock:
            try:
                found = self._path.stat()
            except FileNotFoundError:
                self._hashes, self._read_at = {}, None
                return
            except OSError as error:
                raise SettingsError(f"dashboard.users_file = {self._path}: {error.strerror}") from error
            at = (found.st_mtime_ns, found.st_ino)
            if at == self._read_at:
                return
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"dashboard.users_file = {self._path}: cannot be read: {type(error).__name__}"
                ) from error
            hashes = {}
            for number, line in enumerate(lines, 1):
                name, colon, hash_ = line.strip().partition(":")
                if not line.strip() or line.startswith("#"):
                    continue
                if not colon or not _NAME.fullmatch(name) or not hash_.startswith("$argon2"):
                    raise SettingsError(
                        f"dashboard.users_file = {self._path}: line {number}: not `name:hash`; "
                        "`station dashboard --set-password NAME` writes such lines"
                    )
                hashes[name] = hash_
            self._hashes, self._read_at = hashes, at


class Throttle:
    """Waits that grow with every wrong password."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # who → how many, the last when

    def demand(self, *who: str) -> None:
        """Refuse whoever has to wait.

        Raises:
            RefusedError: how long, in its ``retry_after``.
        """
        with self._lock:
            wait = max(self._wait(name) for name in who)
        if wait > 0:
            raise RefusedError(f"wait: too many wrong passwords; again in {wait:.0f} s", 429, retry_after=wait)

    def failed(self, *who: str) -> None:
        """A wrong password."""
        with self._lock:
            for name in who:
                count, last = self._failures.pop(name, (0, 0.0))
                now = self._clock()
                if now - last > 2 * _LONGEST_WAIT:
                    count = 0
                self._failures[name] = (count + 1, now)
            while len(self._failures) > _REMEMBERED:
                self._failures.popitem(last=False)

    def succeeded(self, *who: str) -> None:
        """The right one."""
        with self._lock:
            for name in who:
                self._failures.pop(name, None)

    def _wait(self, name: str) -> float:
        count, last = self._failures.get(name, (0, 0.0))
        if count < _FAILURES:
            return 0.0
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(count - _FAILURES, 20))
        return max(0.0, last + wait - self._clock())


class Access:
    """The rules."""

    def __init__(self, settings: DashboardSection) -> None:
        """Read users and key.

        Raises:
            SettingsError: the users file cannot be read, or the settings leave nobody to act.
            DashboardError: the state folder does not take the key.
        """
        if settings.operators and settings.users_file is None and settings.user_header is None:
            raise SettingsError(
                "dashboard.operators names users, but nobody can log in: set dashboard.users_file (and write it with "
                "`station dashboard --set-password NAME`), or dashboard.user_header behind a proxy that logs people in"
            )
        if not settings.public and settings.users_file is None and settings.user_header is None:
            raise SettingsError(
                "dashboard.public = false: nobody could look, as nobody can log in: set dashboard.users_file or "
                "dashboard.user_header"
            )
        self._settings = settings
        self._users = Users(settings.users_file) if settings.users_file is not None else None
        self._proxies = frozenset(settings.proxies)
        self._operators = frozenset(settings.operators)
        self._hosts = frozenset(host.lower() for host in (*settings.hosts, socket.gethostname(), socket.getfqdn()))
        self._throttle = Throttle()
        self._key = _read_key(settings.state_folder / _KEY)
        self._sessions = URLSafeTimedSerializer(self._key, salt="session")

    @property
    def has_login(self) -> bool:
        """Whether there are users with passwords."""
        return self._users is not None

    def viewer(self, connection: HTTPConnection) -> Viewer:
        """Who sends this request."""
        user, session = self._by_header(connection), ""
        if user is None and self._users is not None:
            user, session = self._by_cookie(connection.cookies.get(COOKIE, ""), self._users)
        return Viewer(
            user=user,
            may_look=self._settings.public or user is not None,
            may_act=user is not None and user in self._operators,
            session=f"{user or ''} {session}",
        )

    def token(self, viewer: Viewer) -> str:
        """That a page must send with everything that changes something."""
        return hmac.new(self._key, f"csrf {viewer.session}".encode(), hashlib.sha256).hexdigest()

    def demand_own_page(self, connection: HTTPConnection, viewer: Viewer) -> None:
        """Refuse what another page had the browser send.

        Raises:
            RefusedError: as it says.
        """
        given = connection.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(given.encode(), self.token(viewer).encode()):
            raise RefusedError("csrf: the X-CSRF-Token of /api/me is missing or old", 403)
        site = connection.headers.get("sec-fetch-site")
        origin = connection.headers.get("origin")
        if site is not None and site != "same-origin":
            raise RefusedError("csrf: sent by another page", 403)
        if origin is not None and urlsplit(origin).netloc.lower() != connection.headers.get("host", "").lower():
            raise RefusedError("csrf: sent by another page; does the proxy pass on the Host header?", 403)

    def demand_known_host(self, connection: HTTPConnection) -> None:
        """Refuse a name that a foreign page may have had point to us (DNS rebinding).

        Raises:
            RefusedError: as it says.
        """
        host = connection.headers.get("host", "")
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            name = ""
        try:
            ip_address(name)
        except ValueError:
            if name in self._hosts or _LOCAL_NAME.fullmatch(name):
                return
            raise RefusedError(f"unknown-host: {name[:100]!r}; name it in dashboard.hosts", 421) from None

    def log_in(self, user: str, password: str, address: str) -> str:
        """The session's cookie; takes a while on purpose.

        Raises:
            RefusedError: wrong, or too often wrong.
        """
        if self._users is None:
            raise RefusedError("no-login: there is no users file", 404)
        who = (f"address {address}", f"user {user[:_MAX_NAME]}")
        self._throttle.demand(*who)
        if not self._users.verify(user, password):
            self._throttle.failed(*who)
            log.warning("wrong user or password", address=address)
            raise RefusedError("wrong: user or password", 401)
        self._throttle.succeeded(*who)
        log.info("logged in", user=user, address=address)
        return self._sessions.dumps([user, self._users.mark(user), secrets.token_hex(8)])

    def address(self, connection: HTTPConnection) -> str:
        """Whose request it is: the browser's address, as the proxy tells it if there is one."""
        peer = connection.client.host if connection.client else ""
        if self._is_proxy(connection) and (told := connection.headers.get("x-forwarded-for")):
            return told.rpartition(",")[2].strip()[:100]
        return peer

    def is_secure(self, connection: HTTPConnection) -> bool:
        """Whether the browser speaks TLS, to us or to the proxy."""
        if connection.url.scheme == "https":
            return True
        return self._is_proxy(connection) and connection.headers.get("x-forwarded-proto", "").lower() == "https"

    def _is_proxy(self, connection: HTTPConnection) -> bool:
        try:
            return connection.client is not None and ip_address(connection.client.host) in self._proxies
        except ValueError:
            return False

    def _by_header(self, connection: HTTPConnection) -> str | None:
        header = self._settings.user_header
        if header is None or not self._is_proxy(connection):
            return None
        values = connection.headers.getlist(header)
        # Two of them: one is the browser's own, which the proxy should have taken away.
        if len(values) != 1 or not values[0].strip() or not values[0].isprintable():
            return None
        return values[0].strip()[:_MAX_NAME]

    def _by_cookie(self, cookie: str, users: Users) -> tuple[str | None, str]:
        try:
            user, mark, number = self._sessions.loads(cookie, max_age=SESSION_SECONDS)
        except (BadSignature, ValueError, TypeError):
            return None, ""
        if users.mark(user) != mark:  # the password was changed, or the user is gone
            return None, ""
        return user, number


def ask_password(user: str) -> str:
    """From the terminal, twice; from a pipe, its first line.

    Raises:
        DashboardError: the two are not the same.
    """
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"Password of {user}: ")
    if getpass.getpass("Again: ") != password:
        raise DashboardError("the two are not the same; nothing was changed")
    return password


def _read_key(path: Path) -> bytes:
    """The key that sessions are signed with, made once: sessions outlive a restart."""
    try:
        key = path.read_bytes()
        if len(key) >= 32:
            return key
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DashboardError(f"{path}: cannot be read: {error.strerror}") from error
    key = secrets.token_bytes(32)
    try:
        write_file(path, key, 0o600)
    except OutputError as error:
        raise DashboardError(str(error)) from error
    return key
