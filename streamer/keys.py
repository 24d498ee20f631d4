"""Who may connect, and what each of them may say: key files, the allow-list, the roles.

A key pair is two texts of 40 letters (Z85), as libzmq takes them. Who has the secret one is that peer; the
public one may be known to all. The streamer's folder holds ``streamer.key``, its own pair, and
``allowed.toml``, the public keys that it lets in. ``docs/security.md`` says what this protects from.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from streamer.messages import (
    AnyMessage,
    Bye,
    Checkpoint,
    Control,
    Enough,
    Frame,
    Heartbeat,
    Hello,
    ModelRevision,
    Outcome,
    Patches,
    Resend,
    Role,
    Score,
    Suggestion,
)

STREAMER_KEY = "streamer.key"
ALLOWED = "allowed.toml"
# A revoked key is cut off after no more than this; a look at the file costs 2 µs.
LOOK_EVERY_S = 1.0
_MOST_BYTES = 1 << 20
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIST_HEAD = (
    "# Who may connect. `probeloop keys allow` and `revoke` write this file; a running streamer notices.\n"
)
T = TypeVar("T")


class KeysError(ValueError):
    """A key file that must not be used, or a change that must not be made; the text says what would do."""


# -- what a role may send --------------------------------------------------------------------------

_TALK = (Hello, Bye, Heartbeat, Resend)
_MAY_SEND: dict[Role, tuple[type, ...]] = {
    "instrument": (*_TALK, Frame, Patches, Outcome, Control),
    "agent": (*_TALK, Suggestion, Score, ModelRevision, Checkpoint, Enough, Control),
    "operator": (*_TALK, Suggestion, Control),
    "viewer": (),
}


def may_send(role: Role, message: AnyMessage) -> bool:
    """Say whether a peer of this role may send a message; what is not allowed here is refused.

    Anybody who works in the loop may abort it, only an operator may steer it. Nobody speaks in
    another role than its own, or in the streamer's name.

    Parameters
    ----------
    role
        Of the key that the connection was let in with; without keys, as the peer said Hello.
    message
        As it came.
    """
    if not isinstance(message, _MAY_SEND[role]):
        return False
    match message:
        case Control():
            return role == "operator" or message.action == "abort"
        case Hello():
            return message.role == role and message.name != "streamer"
        case Checkpoint():
            return message.of != "streamer"
        case _:
            return True


# -- key files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, in Z85; ``streamer.wire.new_pair`` draws one."""

    public: str
    secret: str = field(repr=False)


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the allow-list.

    Attributes
    ----------
    name
        What people call it.
    role
        What it may send.
    public
        Its public key.
    """

    name: str
    role: Role
    public: str

    def __post_init__(self) -> None:
        require_name(self.name)
        require_key("public", self.public)


class _PairFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    role: Role | Literal["streamer"]
    public: str
    secret: str
    streamer: str = ""

    def __post_init__(self) -> None:
        require_key("public", self.public)
        require_key("secret", self.secret)
        if self.streamer:
            require_key("streamer", self.streamer)


class _AllowedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer: tuple[Peer, ...] = ()

    def __post_init__(self) -> None:
        for what in ("name", "public"):
            values = [getattr(peer, what) for peer in self.peer]
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]} stands there twice; it takes each one once")


def require_name(name: str) -> None:
    """Raise ValueError unless a name can be that of a file and of a peer."""
    if not _NAME.fullmatch(name) or name == "streamer":
        raise ValueError(
            f"name is {name[:80]!r}; it takes 1 to 64 letters, digits, dots, - and _, and not «streamer»"
        )


def require_key(what: str, key: str) -> None:
    """Raise ValueError unless the text is a key; the text itself is not repeated: it may be a secret."""
    groups = [key[start : start + 5] for start in range(0, len(key), 5)]
    if len(key) != 40 or any(_number(group) >= 2**32 for group in groups):
        raise ValueError(
            f"{what} is not a key; it takes 40 letters of Z85, as `probeloop keys list` shows them"
        )


def _number(group: str) -> int:
    number = 0
    for letter in group:
        place = _Z85.find(letter)
        if place < 0:
            return 2**32
        number = number * 85 + place
    return number


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """All that a client needs: its own pair and the streamer's public key.

    Attributes
    ----------
    name, role
        As the streamer's allow-list has them.
    public, secret
        Its own pair.
    streamer
        The streamer's public key: who else answers at the address is not spoken to.
    """

    name: str
    role: str
    public: str
    secret: str = field(repr=False)
    streamer: str

    @classmethod
    def read(cls, path: Path | str, role: Role | None = None) -> PeerKeys:
        """Read a client's key file, as ``probeloop keys new`` writes it.

        Parameters
        ----------
        path
            The file.
        role
            What the key is needed for; None takes any.

        Raises
        ------
        KeysError
            If it is not there, others may read it, or it is not the key file of such a client.
        """
        path = Path(path)
        pair = _read_pair(path)
        if not pair.streamer:
            raise KeysError(
                f'{path}: it names no streamer; add the line  streamer = "…"  with the key that '
                "`probeloop keys list` shows on the streamer's machine"
            )
        if role is not None and pair.role != role:
            raise KeysError(
                f"{path}: a key for the role {pair.role}, and this takes one for {role}: "
                f"`probeloop keys new NAME --role {role}` makes it"
            )
        return cls(pair.name, pair.role, pair.public, pair.secret, pair.streamer)


def _read_pair(path: Path) -> _PairFile:
    return _parse(path, _read(path, is_private=True), _PairFile)


def _read(path: Path, is_private: bool) -> bytes:
    """Read a file whose mode is as it must be; the file that was looked at is the one that is read."""
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()), is_private)
            return file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise KeysError(
            f"{path}: there is no such file; `probeloop keys new NAME --role ROLE` makes keys"
        ) from None
    except OSError as error:
        raise KeysError(f"{path}: cannot be read: {error.strerror}") from None


def _check_mode(path: Path, status: os.stat_result, is_private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeysError(f"{path}: not a plain file")
    if os.name != "posix":  # elsewhere the mode says nothing; docs/security.md says what to do there
        return
    mode = stat.S_IMODE(status.st_mode)
    if is_private and mode != 0o600:
        raise KeysError(
            f"{path}: its mode is {mode:04o}, and a private key is for its owner alone: chmod 600 {path}"
        )
    if mode & 0o022:
        raise KeysError(
            f"{path}: its mode is {mode:04o}, so others could let themselves in: chmod 644 {path}"
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which others could put their own files in the place of ours."""
    if os.name == "posix" and folder.is_dir() and folder.stat().st_mode & 0o022:
        raise KeysError(
            f"{folder}: others may write in this folder, and so let themselves in: chmod 700 {folder}"
        )


def _parse(path: Path, content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.convert(tomllib.loads(content.decode("utf-8")), kind)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise KeysError(f"{path}: not a key file of probeloop: {error}") from None


def write_pair(path: Path, *, name: str, role: str, pair: KeyPair, streamer: str = "") -> None:
    """Write a private key file, mode 0600.

    Raises
    ------
    KeysError
        If there is such a file: a key is never overwritten.
    """
    lines = [
        f"# The private key of {name} ({role}): whoever has this file is {name}. Keep it for yourself.",
        f'name = "{name}"',
        f'role = "{role}"',
        f'public = "{pair.public}"',
        f'secret = "{pair.secret}"',
        *([f'streamer = "{streamer}"'] if streamer else []),
    ]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeysError(f"{path}: there is one already; remove it first, or choose another name") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


# -- the streamer's folder -------------------------------------------------------------------------


def read_allowed(folder: Path) -> tuple[Peer, ...]:
    """Read the allow-list of a streamer's key folder; nobody is allowed where there is none yet.

    Raises
    ------
    KeysError
        If others could write it, or it is not an allow-list.
    """
    _check_folder(folder)
    path = folder / ALLOWED
    if not path.exists():
        return ()
    return _parse(path, _read(path, is_private=False), _AllowedFile).peer


def allow(folder: Path, peer: Peer) -> None:
    """Let a key in.

    Raises
    ------
    KeysError
        If the name or the key is on the list already.
    """
    with _alone(folder):
        peers = read_allowed(folder)
        for other in peers:
            if peer.name == other.name:
                raise KeysError(f"{peer.name} is allowed already; `probeloop keys revoke {peer.name}` first")
            if peer.public == other.public:
                raise KeysError(f"this key is allowed already, as {other.name} ({other.role})")
        _write_allowed(folder, (*peers, peer))


def revoke(folder: Path, name: str) -> Peer:
    """Take a key off the list, and return what stood there; open connections end within a second or two.

    Raises
    ------
    KeysError
        If the name is not on the list.
    """
    with _alone(folder):
        peers = read_allowed(folder)
        found = [peer for peer in peers if peer.name == name]
        if not found:
            known = ", ".join(peer.name for peer in peers) or "nobody"
            raise KeysError(f"{name} is not allowed, so there is nothing to revoke; allowed: {known}")
        _write_allowed(folder, tuple(peer for peer in peers if peer.name != name))
        return found[0]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two commands from undoing each other's change: a revocation must not be lost."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_allowed(folder: Path, peers: tuple[Peer, ...]) -> None:
    """Write whole or not at all: a streamer that looks at this moment never reads half a list."""
    blocks = [
        f'\n[[peer]]\nname = "{peer.name}"\nrole = "{peer.role}"\npublic = "{peer.public}"\n'
        for peer in peers
    ]
    part = folder / f"{ALLOWED}.part"
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_LIST_HEAD + "".join(blocks))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / ALLOWED)


class ServerKeys:
    """The streamer's own pair and its allow-list, which may change while it runs.

    Safe to ask from several threads. While the list cannot be read nobody is let in: peers keep what
    has no ack, so a slip of the pen costs a pause and no data.

    Parameters
    ----------
    folder
        With ``streamer.key`` and ``allowed.toml``.

    Attributes
    ----------
    public, secret
        The streamer's own pair.
    problem
        Why nobody is let in at present; empty when all is well.

    Raises
    ------
    KeysError
        If a file is missing, others may read or write it, or it is not what it should be.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        pair = _read_pair(self.folder / STREAMER_KEY)
        if pair.role != "streamer":
            raise KeysError(f"{self.folder / STREAMER_KEY}: the key of a {pair.role}, not of a streamer")
        self.public, self.secret = pair.public, pair.secret
        self.problem = ""
        self._lock = threading.Lock()
        self._removals = 0
        self._next_look_s = -float("inf")
        self._seen: tuple[int, ...] | None = ()  # nothing yet: the first look reads again
        self._peers = {peer.public: peer for peer in read_allowed(self.folder)}

    def role_of(self, public: str, now_s: float | None = None) -> Role | None:
        """Say what a key may do; None for one that is not allowed (any more).

        Parameters
        ----------
        public
            The key, in Z85.
        now_s
            A steady clock, in seconds; None asks the machine's. The file is looked at once a second.
        """
        peer = self._look(now_s).get(public)
        return None if peer is None else peer.role

    def name_of(self, public: str, now_s: float | None = None) -> str | None:
        """Say whose a key is; None for one that is not allowed (any more)."""
        peer = self._look(now_s).get(public)
        return None if peer is None else peer.name

    def admits(self, public: str) -> bool:
        """Say whether to let a new connection in; it looks at the file each time."""
        with self._lock:
            self._read_again()
        return public in self._peers

    def removals(self, now_s: float | None = None) -> int:
        """Count how often a key was taken off the list, or changed its role, since the start."""
        self._look(now_s)
        return self._removals

    def _look(self, now_s: float | None) -> dict[str, Peer]:
        now_s = time.monotonic() if now_s is None else now_s
        if now_s >= self._next_look_s:
            with self._lock:
                if now_s >= self._next_look_s:
                    self._next_look_s = now_s + LOOK_EVERY_S
                    self._read_again()
        return self._peers

    def _read_again(self) -> None:
        seen = _fingerprint(self.folder / ALLOWED)
        if seen == self._seen and not self.problem:
            return
        try:
            peers = {peer.public: peer for peer in read_allowed(self.folder)}
        except KeysError as error:
            peers, self.problem = {}, str(error)
        else:
            self.problem = ""
        if any(peers.get(public) != peer for public, peer in self._peers.items()):
            self._removals += 1
        self._peers, self._seen = peers, seen


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode)
