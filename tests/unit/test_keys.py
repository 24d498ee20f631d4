"""Key files, the allow-list and what each role may send."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deploy.keys_command import app
from streamer.keys import (
    KeyPair,
    KeysError,
    Peer,
    PeerKeys,
    ServerKeys,
    allow,
    may_send,
    read_allowed,
    require_key,
    require_name,
    revoke,
    write_pair,
)
from streamer.messages import (
    Ack,
    Bye,
    Checkpoint,
    Control,
    Enough,
    Event,
    Heartbeat,
    Hello,
    ModelRevision,
    Outcome,
    Resend,
    Role,
    Score,
)

# From ZeroMQ's CURVE documentation; nobody's.
PUBLIC = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
OTHER = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes say nothing here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the folder of a streamer that knows nobody yet."""
    folder = tmp_path / "keys"
    write_pair(folder / "streamer.key", name="streamer", role="streamer", pair=KeyPair(PUBLIC, SECRET))
    return folder


def peer(name: str = "titan", role: Role = "instrument", public: str = OTHER) -> Peer:
    return Peer(name=name, role=role, public=public)


def write_client(path: Path, streamer: str = PUBLIC) -> Path:
    write_pair(path, name="titan", role="instrument", pair=KeyPair(OTHER, SECRET), streamer=streamer)
    return path


# -- files -----------------------------------------------------------------------------------------


def test_client_reads_from_its_file_all_that_it_needs(tmp_path):
    keys = PeerKeys.read(write_client(tmp_path / "titan.key"))
    assert keys == PeerKeys("titan", "instrument", OTHER, SECRET, PUBLIC)


def test_key_for_another_role_is_refused_before_anybody_is_asked(tmp_path):
    path = write_client(tmp_path / "titan.key")
    assert PeerKeys.read(path, "instrument").role == "instrument"
    with pytest.raises(KeysError, match="for the role instrument, and this takes one for agent"):
        PeerKeys.read(path, "agent")


def test_secrets_are_in_no_text_that_a_log_may_print(tmp_path, folder):
    keys = PeerKeys.read(write_client(tmp_path / "titan.key"))
    assert SECRET not in repr(keys) + repr(KeyPair(PUBLIC, SECRET)) + repr(ServerKeys(folder))


@POSIX
def test_private_files_are_made_for_their_owner_alone(folder):
    before = os.umask(0)
    try:
        path = write_client(folder.parent / "new" / "titan.key")
    finally:
        os.umask(before)
    assert [part.stat().st_mode & 0o777 for part in (path, path.parent)] == [0o600, 0o700]


@POSIX
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o700, 0o400, 0o000, 0o4600])
def test_private_file_of_any_other_mode_is_refused_with_the_cure(tmp_path, folder, mode):
    for path in (write_client(tmp_path / "titan.key"), folder / "streamer.key"):
        path.chmod(mode)
    with pytest.raises(KeysError, match=r"chmod 600 .*titan.key|titan.key: cannot be read"):
        PeerKeys.read(tmp_path / "titan.key")
    with pytest.raises(KeysError, match=r"chmod 600 .*streamer.key|streamer.key: cannot be read"):
        ServerKeys(folder)


@POSIX
@pytest.mark.parametrize("what", ["", "allowed.toml"])
def test_list_that_others_could_write_is_refused_with_the_cure(folder, what):
    allow(folder, peer())
    (folder / what).chmod(0o777)
    with pytest.raises(KeysError, match="let themselves in: chmod"):
        ServerKeys(folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name = 'a'", "missing required field"),
        ("name = ", "Invalid value"),
        (b"\xff\xfe", "not a key file"),
        (f"name='a'\nrole='pilot'\npublic='{PUBLIC}'\nsecret='{SECRET}'", "pilot"),
        (f"name='a'\nrole='agent'\npublic='{PUBLIC}'\nsecret='short'", "secret is not a key"),
        (
            f"name='a'\nrole='agent'\npublic='{PUBLIC}'\nsecret='{SECRET}'\nstreamer='{'#' * 40}'",
            "streamer is",
        ),
        (f"name='a'\nrole='agent'\npublic='{PUBLIC}'\nsecret='{SECRET}'\nextra=1", "extra"),
        (f"name='a'\nrole='agent'\npublic='{PUBLIC}'\nsecret='{SECRET}'", "it names no streamer"),
    ],
)
def test_file_that_is_no_clients_key_is_refused_by_name(tmp_path, content, complaint):
    path = tmp_path / "a.key"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    with pytest.raises(KeysError, match=complaint) as caught:
        PeerKeys.read(path)
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_missing_file_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(KeysError, match="no such file; `probeloop keys new"):
        PeerKeys.read(tmp_path / "a.key")


def test_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(KeysError, match=r"cannot be read|not a plain file"):
        PeerKeys.read(tmp_path)


def test_key_is_never_overwritten(tmp_path):
    path = write_client(tmp_path / "titan.key")
    before = path.read_bytes()
    with pytest.raises(KeysError, match="one already"):
        write_client(path)
    assert path.read_bytes() == before


def test_key_of_a_client_is_not_taken_for_the_streamers(tmp_path):
    write_client(tmp_path / "streamer.key")
    with pytest.raises(KeysError, match="the key of a instrument, not of a streamer"):
        ServerKeys(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "streamer", "../titan", "a b", 'x"\nrole="operator', "a" * 65, ".hidden"]
)
def test_name_that_could_be_taken_for_something_else_is_refused(name):
    with pytest.raises(ValueError, match="name is"):
        require_name(name)


@pytest.mark.parametrize("key", ["", "a" * 39, "a" * 41, "#" * 40, '"' * 40, "ä" * 40, "\n" * 40])
def test_text_that_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="public is not a key"):
        require_key("public", key)


# -- the allow-list --------------------------------------------------------------------------------


def test_list_gives_back_what_was_allowed_in_order(folder):
    peers = (peer(), peer("bob", "operator", PUBLIC))
    for one in peers:
        allow(folder, one)
    assert [(p.name, p.role, p.public) for p in read_allowed(folder)] == [
        ("titan", "instrument", OTHER),
        ("bob", "operator", PUBLIC),
    ]


def test_name_or_key_is_allowed_once(folder):
    allow(folder, peer())
    with pytest.raises(KeysError, match="revoke titan` first"):
        allow(folder, peer(public=PUBLIC))
    with pytest.raises(KeysError, match=r"as titan \(instrument\)"):
        allow(folder, peer("bob"))


def test_nobody_is_revoked_who_is_not_allowed(folder):
    allow(folder, peer())
    with pytest.raises(KeysError, match="allowed: titan"):
        revoke(folder, "bob")
    assert revoke(folder, "titan").public == OTHER
    assert read_allowed(folder) == ()


def test_list_with_the_same_name_twice_is_refused(folder):
    line = f'[[peer]]\nname="a"\nrole="agent"\npublic="{OTHER}"\n'
    (folder / "allowed.toml").write_text(line + line)
    with pytest.raises(KeysError, match="name a stands there twice"):
        read_allowed(folder)


def test_key_is_known_by_role_and_name_and_a_stranger_by_neither(folder):
    allow(folder, peer())
    keys = ServerKeys(folder)
    assert (keys.role_of(OTHER), keys.name_of(OTHER)) == ("instrument", "titan")
    assert (keys.role_of(PUBLIC), keys.name_of(""), keys.role_of("")) == (None, None, None)


def test_revocation_is_noticed_within_a_second_while_running(folder):
    allow(folder, peer())
    keys = ServerKeys(folder)
    assert keys.role_of(OTHER, now_s=0.0) == "instrument"
    revoke(folder, "titan")
    assert keys.role_of(OTHER, now_s=0.9) == "instrument"  # the file is not looked at for each message
    assert keys.role_of(OTHER, now_s=1.0) is None
    assert keys.removals(now_s=1.0) == 1


def test_new_connection_is_judged_by_the_file_as_it_is_now(folder):
    allow(folder, peer())
    keys = ServerKeys(folder)
    assert keys.admits(OTHER)
    revoke(folder, "titan")
    assert not keys.admits(OTHER)
    assert not keys.admits("")


def test_key_that_is_allowed_later_is_known_later_and_removes_nobody(folder):
    keys = ServerKeys(folder)
    assert keys.role_of(OTHER, now_s=0.0) is None
    allow(folder, peer())
    assert keys.role_of(OTHER, now_s=1.0) == "instrument"
    assert keys.removals(now_s=1.0) == 0


def test_change_of_role_counts_as_a_removal(folder):
    allow(folder, peer())
    keys = ServerKeys(folder)
    revoke(folder, "titan")
    allow(folder, peer(role="viewer"))
    assert keys.role_of(OTHER, now_s=1.0) == "viewer"
    assert keys.removals(now_s=1.0) == 1


@pytest.mark.parametrize("harm", ["broken", "gone", "open to others"])
def test_list_that_cannot_be_read_lets_nobody_in_until_it_is_right_again(folder, harm):
    allow(folder, peer())
    keys = ServerKeys(folder)
    path = folder / "allowed.toml"
    good = path.read_bytes()
    if harm == "broken":
        path.write_text("[[peer]\n")
    elif harm == "gone":
        path.unlink()
    else:
        path.chmod(0o666)
    assert keys.role_of(OTHER, now_s=1e9) is None
    assert bool(keys.problem) == (harm != "gone")
    path.write_bytes(good)
    path.chmod(0o644)
    assert keys.role_of(OTHER, now_s=1e9 + 1) == "instrument"
    assert keys.problem == ""


# -- roles -----------------------------------------------------------------------------------------

TALK = {"bye": Bye(), "heartbeat": Heartbeat(), "resend": Resend(after=0)}


def control(action: str) -> Control:
    return Control(action=action, id="a-1")  # type: ignore[arg-type]


def said(role: Role, make_frame, make_suggestion) -> set[str]:
    """Name every message, of one of each kind, that a role may send."""
    ones = TALK | {
        **{f"hello as {other}": Hello(role=other, name="x") for other in ROLES},
        "hello as the streamer": Hello(role=role, name="streamer"),
        **{action: control(action) for action in ("pause", "resume", "stop", "abort", "veto")},
        "frame": make_frame(),
        "outcome": Outcome(session="s", id="a", status="failed", scan_position_nm=(0, 0), dwell_time_us=1.0),
        "suggestion": make_suggestion(),
        "score": Score(session="s", id="a", objective="o", value=1.0, variance=0.0),
        "revision": ModelRevision(
            session="s", policy="p", revision=1, told=1, observations=1, parameters={"a": [1.0]}
        ),
        "checkpoint": Checkpoint(session="s", of="x", told=1, facts=b"", arrays={"a": np.zeros(1)}),
        "checkpoint of the streamer": Checkpoint(session="s", of="streamer", told=1, facts=b"", arrays={}),
        "enough": Enough(session="s", policy="p", told=1, reason="r"),
        "ack": Ack(session="s", number=0, status="written"),
        "event": Event(at_s=0.0, what="x"),
    }
    return {name for name, message in ones.items() if may_send(role, message)}


ROLES: tuple[Role, ...] = ("instrument", "agent", "operator", "viewer")


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("instrument", {*TALK, "hello as instrument", "abort", "frame", "outcome"}),
        (
            "agent",
            {*TALK, "hello as agent", "abort", "suggestion", "score", "revision", "checkpoint", "enough"},
        ),
        (
            "operator",
            {*TALK, "hello as operator", "suggestion", "pause", "resume", "stop", "abort", "veto"},
        ),
        ("viewer", set()),
    ],
)
def test_role_may_send_this_and_nothing_else(role, allowed, make_frame, make_suggestion):
    assert said(role, make_frame, make_suggestion) == allowed


# -- the command -----------------------------------------------------------------------------------


def keys(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def said_by(*words: str) -> str:
    result = keys(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_command_makes_all_that_streamer_and_client_need(tmp_path):
    folder = str(tmp_path / "keys")
    said_by("new", "titan", "--role", "instrument", "--folder", folder)
    client, server = PeerKeys.read(tmp_path / "keys" / "titan.key", "instrument"), ServerKeys(folder)
    assert client.streamer == server.public
    assert (server.role_of(client.public), server.name_of(client.public)) == ("instrument", "titan")


def test_command_lets_in_a_pair_made_elsewhere_whose_secret_never_travels(tmp_path):
    here, there = str(tmp_path / "keys"), str(tmp_path / "there")
    said_by("new", "anna", "--role", "operator", "--folder", here)
    streamer = ServerKeys(here).public
    told = said_by("new", "pc", "--role", "agent", "--folder", there, "--alone", "--streamer", streamer)
    client = PeerKeys.read(tmp_path / "there" / "pc.key", "agent")
    assert f"-- '{client.public}'" in told
    assert client.secret not in told
    said_by("allow", "pc", "--role", "agent", "--folder", here, "--", client.public)
    assert ServerKeys(here).role_of(client.public) == "agent"
    assert client.streamer == streamer


def test_command_takes_back_and_lists(tmp_path):
    folder = str(tmp_path / "keys")
    for name, role in (("titan", "instrument"), ("anna", "viewer")):
        said_by("new", name, "--role", role, "--folder", folder)
    assert "titan.key is of no more use" in said_by("revoke", "titan", "--folder", folder)
    listed = said_by("list", "--folder", folder)
    assert ServerKeys(folder).public in listed
    assert "anna" in listed
    assert "titan" not in listed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("new", "a b", "--role", "agent"), "name is 'a b'"),
        (("new", "titan", "--role", "agent"), "titan is allowed already"),
        (("new", "pc", "--role", "agent", "--streamer", PUBLIC), "goes with --alone"),
        (("new", "pc", "--role", "agent", "--alone", "--streamer", "x"), "--streamer is not a key"),
        (("allow", "pc", "short", "--role", "agent"), "public is not a key"),
        (("revoke", "pc"), "nothing to revoke; allowed: titan"),
    ],
)
def test_command_that_cannot_be_done_says_why_and_changes_nothing(tmp_path, words, complaint):
    folder = tmp_path / "keys"
    said_by("new", "titan", "--role", "instrument", "--folder", str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = keys(*words, "--folder", str(folder))
    assert result.exit_code == 2
    assert complaint in result.output
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_command_does_not_use_a_streamers_key_that_others_may_read(tmp_path):
    folder = tmp_path / "keys"
    said_by("new", "titan", "--role", "instrument", "--folder", str(folder))
    (folder / "streamer.key").chmod(0o644)
    result = keys("new", "anna", "--role", "viewer", "--folder", str(folder))
    assert result.exit_code == 2
    assert "chmod 600" in result.output
