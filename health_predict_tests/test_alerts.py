"""Alerts on their way: once while open, once when over, past a channel that fails, no secrets."""

import base64
import json
import logging
import re
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email import message_from_string
from ipaddress import ip_address
from pathlib import Path

import pytest

from health_predict.alerts import Alert, DeliveryError, Message, Outbox, OutboxError
from health_predict.channels import Email, Webhook, channels, slack
from health_predict.processes import environment
from health_predict.settings import Settings
from health_predict.store import Store
from health_predict_tests.receivers import SECRET, Receiver, receiving, serving

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
ALERT = Alert(
    key="major drift",
    title="Major drift",
    since=NOON,
    what="batch-0007: AUC 0.71 > 0.60 & <rising>.",
    did="Retraining was requested.",
    todo="Look at the columns.",
    links=(("run 0f3a", "http://127.0.0.1:3000/runs/0f3a"),),
)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@dataclass
class Post:
    """A mail server on a real socket: what it offers, what it was told, what it accepted."""

    port: int = 0
    tls: ssl.SSLContext | None = None
    encrypted_from_start: bool = False
    refuse: bool = False
    mails: list[str] = field(default_factory=list)
    logins: list[tuple[str, bool]] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)


class PostOffice(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as a client needs to hand a message over."""

    def handle(self) -> None:
        post: Post = self.server.post  # type: ignore[attr-defined]
        encrypted = post.encrypted_from_start
        if encrypted:
            self._encrypt(post)
        self._say("220 ready")
        while line := self.rfile.readline().decode().strip():
            command = line.split()[0].upper()
            if command == "EHLO":
                offers = ["250-localhost", "250-AUTH PLAIN"]
                offers += ["250-STARTTLS"] if post.tls and not encrypted else []
                self._say(*offers, "250 8BITMIME")
            elif command == "STARTTLS":
                self._say("220 go ahead")
                self._encrypt(post)
                encrypted = True
            elif command == "AUTH":
                words = base64.b64decode(line.split()[2]).decode().replace("\0", " ").strip()
                post.logins.append((words, encrypted))
                self._say("535 5.7.8 wrong" if post.refuse else "235 welcome")
            elif command == "DATA":
                self._say("354 go on")
                mail = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                post.mails.append("\n".join(mail))
                self._say("250 taken")
            elif command == "QUIT":
                return self._say("500 rude")  # the message was taken all the same
            else:
                post.recipients += re.findall(r"RCPT TO:<(.+?)>", line, re.I)
                self._say("250 ok")
        return None

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    def _encrypt(self, post: Post) -> None:
        assert post.tls is not None
        self.connection = post.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")  # type: ignore[assignment]
        self.wfile = self.connection.makefile("wb", 0)  # type: ignore[assignment]


@pytest.fixture
def post() -> Iterator[Post]:
    office = Post()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), PostOffice) as server:
        server.post = office  # type: ignore[attr-defined]
        office.port = server.server_address[1]
        with serving(server):
            yield office


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 and its key in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(key.private_bytes(pem, kind, plain) + signed.public_bytes(pem))
    return path


@pytest.fixture
def tls(post: Post, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Post:
    """A mail server that can encrypt, and is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    post.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    post.tls.load_cert_chain(certificate)
    return post


@dataclass
class Memory:
    """A channel that remembers, and fails while it is told to."""

    name: str
    fails: bool = False
    got: list[str] = field(default_factory=list)

    def send(self, message: Message) -> None:
        if self.fails:
            raise DeliveryError("it is closed")
        self.got.append(message.subject)


def settled(outbox: Outbox, *alerts: Alert) -> str:
    return outbox.settle(alerts, outbox.open()).sentence


def email(post: Post, *, user: str = "", scheme: str = "smtp") -> Email:
    url = f"{scheme}://{user}127.0.0.1:{post.port}"
    return Email(url, "loop@example.org", ["ann@example.org", "bo@example.org"])


def test_an_alert_is_sent_once_while_it_is_open_and_once_when_it_is_over(store: Store) -> None:
    one = Memory("one")
    for _ in range(3):
        settled(Outbox(store, [one]), ALERT)
    assert one.got == ["Alert: Major drift"]
    for _ in range(3):
        settled(Outbox(store, [one]))
    assert one.got == ["Alert: Major drift", "Resolved: Major drift"]
    settled(Outbox(store, [one]), ALERT)
    assert one.got[2:] == ["Alert: Major drift"], "the same again is news"


def test_a_channel_that_fails_is_tried_again_and_the_other_is_not_sent_it_twice(
    store: Store,
) -> None:
    shut, open_ = Memory("shut", fails=True), Memory("open")
    first = settled(Outbox(store, [shut, open_]), ALERT)
    assert "Not sent, to be tried again: Alert: Major drift by shut (it is closed)" in first
    assert "Sent: Alert: Major drift by open" in first
    shut.fails = False
    settled(Outbox(store, [shut, open_]), ALERT)
    assert shut.got == open_.got == ["Alert: Major drift"]


def test_a_channel_that_failed_all_the_while_hears_both_in_order(store: Store) -> None:
    shut, open_ = Memory("shut", fails=True), Memory("open")
    settled(Outbox(store, [shut, open_]), ALERT)
    settled(Outbox(store, [shut, open_]))
    settled(Outbox(store, [shut, open_]), replace(ALERT, since=NOON + 60))
    shut.fails = False
    settled(Outbox(store, [shut, open_]), ALERT)
    assert (
        shut.got
        == open_.got
        == ["Alert: Major drift", "Resolved: Major drift", "Alert: Major drift"]
    )


def test_one_message_that_is_refused_does_not_hold_up_the_next(store: Store) -> None:
    class Picky(Memory):
        def send(self, message: Message) -> None:
            if message.alert.key == ALERT.key:
                raise DeliveryError("it answered 400")
            super().send(message)

    picky = Picky("picky")
    settled(Outbox(store, [picky]), ALERT, replace(ALERT, key="b", title="Stale data"))
    assert picky.got == ["Alert: Stale data"]


def test_a_channel_that_is_configured_later_hears_what_is_still_open(store: Store) -> None:
    old, new = Memory("old"), Memory("new")
    over = replace(ALERT, key="b", title="Stale data")
    settled(Outbox(store, [old]), ALERT, over)
    settled(Outbox(store, [old]), ALERT)
    settled(Outbox(store, [old, new]), ALERT)
    assert new.got == ["Alert: Major drift"]


def test_what_another_process_opened_meanwhile_is_not_resolved(store: Store) -> None:
    one = Memory("one")
    before = Outbox(store, [one]).open()
    Outbox(store, [one]).add(ALERT)
    Outbox(store, [one]).settle([], before)
    assert one.got == ["Alert: Major drift"]
    settled(Outbox(store, [one]))
    assert one.got[1:] == ["Resolved: Major drift"]


def test_an_alert_that_was_added_is_not_sent_again_by_whoever_finds_it_too(store: Store) -> None:
    one = Memory("one")
    outbox = Outbox(store, [one])
    outbox.add(ALERT)
    outbox.add(ALERT)
    settled(outbox, ALERT)
    assert one.got == ["Alert: Major drift"]


def test_processes_that_tell_the_same_at_a_time_send_it_once(store: Store) -> None:
    one = Memory("one")
    threads = [threading.Thread(target=Outbox(store, [one]).add, args=(ALERT,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.got == ["Alert: Major drift"]


def test_a_message_that_was_taken_is_noted_before_the_next_is_sent(store: Store) -> None:
    class Killed(BaseException):
        pass

    class Mortal(Memory):
        def send(self, message: Message) -> None:
            if self.got:
                raise Killed
            super().send(message)

    two = (ALERT, replace(ALERT, key="b", title="Stale data"))
    mortal, heir = Mortal("one"), Memory("one")
    with pytest.raises(Killed):
        settled(Outbox(store, [mortal]), *two)
    settled(Outbox(store, [heir]), *two)
    assert mortal.got + heir.got == ["Alert: Major drift", "Alert: Stale data"]


def test_an_open_alert_keeps_since_when_and_takes_what_is_newest(store: Store) -> None:
    outbox = Outbox(store, [Memory("one")])
    settled(outbox, ALERT)
    settled(outbox, replace(ALERT, since=NOON + 60, what="worse"))
    assert outbox.open()[ALERT.key] == replace(ALERT, what="worse")


def test_a_resolved_alert_is_forgotten_once_every_channel_was_told(store: Store) -> None:
    outbox = Outbox(store, [Memory("one"), Memory("two")])
    settled(outbox, ALERT)
    settled(outbox)
    assert json.loads(store.read("alerts.json")) == []


def test_a_file_that_is_no_outbox_is_named_with_the_remedy(store: Store) -> None:
    store.write("alerts.json", b'[{"alert": 3}]')
    with pytest.raises(OutboxError, match=r"alerts\.json is not what was written: remove it"):
        Outbox(store, []).open()


def test_a_webhook_gets_what_slack_reads(hook: Receiver) -> None:
    Webhook(hook.url).send(Message(ALERT))
    (body,) = hook.bodies
    assert set(body) == {"text", "blocks"}
    header, section = body["blocks"]
    assert header == {
        "type": "header",
        "text": {"type": "plain_text", "text": "Alert: Major drift"},
    }
    assert section["type"] == "section"
    assert section["text"]["type"] == "mrkdwn"
    for text in (body["text"], section["text"]["text"]):
        assert "*What:* batch-0007: AUC 0.71 &gt; 0.60 &amp; &lt;rising&gt;." in text
        assert "*Since:* 2026-03-01 12:00 UTC" in text
        assert "*The system:* Retraining was requested." in text
        assert "*To do:* Look at the columns." in text
        assert "<http://127.0.0.1:3000/runs/0f3a|run 0f3a>" in text


def test_a_resolved_message_says_what_is_over_and_how_long_it_lasted() -> None:
    text = slack(Message(ALERT, resolved=NOON + 3600))["text"]
    assert text.startswith("*Resolved: Major drift*")
    assert "2026-03-01 12:00 UTC until 2026-03-01 13:00 UTC" in text
    assert "batch-0007" in text


def test_long_texts_stay_within_what_slack_takes() -> None:
    header, section = slack(Message(replace(ALERT, title="t" * 500, what="w" * 5000)))["blocks"]
    assert len(header["text"]["text"]) <= 150
    assert len(section["text"]["text"]) <= 3000


@pytest.mark.parametrize(
    "status, attempts", [(500, 2), (429, 2), (404, 1), (302, 1)], ids=lambda value: str(value)
)
def test_a_webhook_is_tried_again_for_what_may_pass_only(
    hook: Receiver, status: int, attempts: int
) -> None:
    hook.status = status
    with pytest.raises(DeliveryError, match=f"answered {status}"):
        Webhook(hook.url, wait=0).send(Message(ALERT))
    assert len(hook.bodies) == attempts


def test_a_receiver_that_does_not_answer_is_given_up(post: Post) -> None:
    # A mail server waits for a greeting that a web client never sends: neither answers in time.
    with pytest.raises(DeliveryError):
        Webhook(f"http://127.0.0.1:{post.port}/{SECRET}", timeout=0.2, wait=0).send(Message(ALERT))


def test_a_webhook_comes_back_without_the_mail_being_sent_again(
    store: Store, hook: Receiver, post: Post
) -> None:
    outbox = Outbox(store, [Webhook(hook.url, wait=0), email(post)])
    hook.status = 503
    settled(outbox, ALERT)
    assert len(post.mails) == 1
    hook.status = 200
    hook.bodies.clear()
    settled(outbox, ALERT)
    settled(outbox)
    assert hook.titles == ["Alert: Major drift", "Resolved: Major drift"]
    assert len(post.mails) == 2


def test_a_mail_says_who_when_and_what_in_plain_text(post: Post) -> None:
    email(post).send(Message(ALERT))
    mail = message_from_string(post.mails[0])
    assert mail["Subject"] == "[health-predict] Alert: Major drift"
    assert mail["From"] == "loop@example.org"
    assert mail["To"] == "ann@example.org, bo@example.org"
    assert mail["Date"]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content_type() == "text/plain"
    assert post.recipients == ["ann@example.org", "bo@example.org"]
    text = str(mail.get_payload())
    for words in ("What: batch-0007: AUC 0.71 > 0.60", "Since: 2026-03-01", "To do: Look at"):
        assert words in text
    assert "run 0f3a: http://127.0.0.1:3000/runs/0f3a" in text


def test_the_mail_that_resolves_answers_the_one_that_raised(post: Post) -> None:
    for message in (Message(ALERT), Message(ALERT), Message(ALERT, resolved=NOON + 60)):
        email(post).send(message)
    raised, again, over = map(message_from_string, post.mails)
    assert raised["Message-ID"] == again["Message-ID"], "a reader shows what came twice once"
    assert over["In-Reply-To"] == raised["Message-ID"] != over["Message-ID"]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_password_travels_encrypted(tls: Post, scheme: str) -> None:
    tls.encrypted_from_start = scheme == "smtps"
    email(tls, user=f"ann:{SECRET}%2F@", scheme=scheme).send(Message(ALERT))
    assert tls.logins == [(f"ann {SECRET}/", True)]
    assert len(tls.mails) == 1


def test_starttls_is_used_where_it_is_offered_also_without_a_password(tls: Post) -> None:
    email(tls).send(Message(ALERT))
    assert len(tls.mails) == 1


def test_a_password_is_not_sent_where_everybody_could_read_it(post: Post) -> None:
    with pytest.raises(DeliveryError, match="STARTTLS"):
        email(post, user=f"ann:{SECRET}@").send(Message(ALERT))
    assert post.logins == []


def test_a_server_that_nobody_trusts_is_not_told_the_password(
    tls: Post, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DeliveryError, match="SSL"):
        email(tls, user=f"ann:{SECRET}@").send(Message(ALERT))
    assert tls.logins == []


def test_no_failure_shows_a_secret(
    store: Store, hook: Receiver, tls: Post, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tls.refuse = True
    gone = Webhook(f"http://127.0.0.1:9/{SECRET}?token={SECRET}", wait=0)
    mail, taken = email(tls, user=f"ann:{SECRET}@"), Webhook(hook.url)
    gone.name, mail.name, taken.name = "gone", "mail", "taken"
    outbox = Outbox(store, [gone, mail, taken])
    sentence = settled(outbox, ALERT)
    assert "by gone (ConnectionError)" in sentence
    assert "by mail (SMTPAuthenticationError 535)" in sentence
    assert len(hook.bodies) == 1
    kept = store.read("alerts.json").decode() + sentence + repr(outbox.channels) + repr(outbox)
    assert SECRET not in caplog.text + kept
    assert "was not sent: ConnectionError" in caplog.text


def test_a_title_cannot_add_a_header(post: Post) -> None:
    email(post).send(Message(replace(ALERT, title="Drift\r\nBcc: eve@example.org")))
    assert message_from_string(post.mails[0])["Bcc"] is None


SMTP = f"smtps://ann:{SECRET}@mail.example.org:465"
ADDRESSES = {"alert_from": "loop@example.org", "alert_to": "ann@example.org, bo@example.org"}


def test_no_channel_is_configured_by_default() -> None:
    assert channels(Settings()) == []
    assert channels(Settings(alert_webhook="", alert_smtp="")) == []


def test_each_setting_adds_its_channel() -> None:
    hook = f"https://hooks.example.org/{SECRET}"
    both = channels(Settings(alert_webhook=hook, alert_smtp=SMTP, **ADDRESSES))
    assert [channel.name for channel in both] == ["webhook", "e-mail"]


def test_secrets_are_not_kept_and_reach_children_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_VAR", str(tmp_path))
    monkeypatch.setenv("HEALTH_PREDICT_ALERT_WEBHOOK", f"https://hooks.example.org/{SECRET}")
    monkeypatch.setenv("HEALTH_PREDICT_ALERT_SMTP", SMTP)
    for name, value in ADDRESSES.items():
        monkeypatch.setenv(f"HEALTH_PREDICT_{name.upper()}", value)
    settings = Settings(rows=2500)
    settings.keep()
    kept = (tmp_path / "settings.json").read_text()
    assert SECRET not in kept + repr(settings) + str(environment(settings))
    assert "***" not in kept + str(environment(settings))
    again = Settings.of_state()
    assert again.rows == 2500
    assert again.alert_webhook is not None
    assert again.alert_webhook.get_secret_value().endswith(SECRET)
    assert again.alert_smtp is not None
    assert again.alert_to == ADDRESSES["alert_to"]


@pytest.mark.parametrize(
    "given, remedy",
    [
        ({"alert_webhook": f"hooks.example.org/{SECRET}"}, "ALERT_WEBHOOK is no http"),
        ({"alert_webhook": f"https://[{SECRET}"}, "ALERT_WEBHOOK is no http"),
        ({"alert_smtp": f"https://ann:{SECRET}@mail", **ADDRESSES}, "give smtps://user"),
        ({"alert_smtp": f"smtps://ann:/{SECRET}@mail", **ADDRESSES}, "percent-encoded"),
        ({"alert_smtp": f"smtps://ann:ö{SECRET}@mail", **ADDRESSES}, "only ASCII"),
        ({"alert_smtp": SMTP}, "ALERT_SMTP needs HEALTH_PREDICT_ALERT_FROM"),
        ({"alert_smtp": SMTP, **ADDRESSES, "alert_to": ""}, "needs HEALTH_PREDICT_ALERT_TO"),
        ({"alert_smtp": SMTP, **ADDRESSES, "alert_to": "ann"}, "somebody@example.org"),
        ({"dagit_url": "dagit.example.org"}, "dagit_url"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name_without_the_secret(
    given: dict[str, str], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy) as refused:
        Settings(**given)  # type: ignore[arg-type]
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(refused.value)
