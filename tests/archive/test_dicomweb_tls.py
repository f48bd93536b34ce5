"""TLS, client certificates and access tokens with a real nginx in front of a real PACS."""

import base64
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pydicom
import pytest

from gateway.archive import Access, open_archive
from gateway.archive.access import OAuthClient
from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_auth import Tokens
from gateway.archive.dicomweb_http import Limits
from gateway.archive.protocol import Archive
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, InvalidSetting
from tests.support.certificates import Authority, Issued
from tests.support.dicom import dicom_file
from tests.support.nginx import Nginx, running_nginx
from tests.support.orthanc import Orthanc, free_port
from tests.support.rogue_answers import hang
from tests.support.rogue_pacs import RoguePacs, running
from tests.support.tokens import CLIENT, SECRET, TokenServer, running_tokens

pytestmark = pytest.mark.pacs


@dataclass(frozen=True)
class Site:
    """A hospital: its authority, a client certificate of it, nginx, and the token server that nginx asks."""

    authority: Authority
    client: Issued
    nginx: Nginx
    tokens: TokenServer
    folder: Path

    def with_certificate(self, client: Issued | None = None, authorities: Path | None = None) -> Archive:
        client = client or self.client
        access = Access(
            certificate=client.certificate,
            key=client.key,
            authorities=authorities or self.authority.certificate,
        )
        return open_archive(self.nginx.certificate_address, access)

    def with_tokens(self, secret: str = SECRET, url: str | None = None) -> Archive:
        oauth = OAuthClient(url or self.tokens.url, CLIENT, secret, "dicom.read dicom.write")
        return open_archive(self.nginx.token_address, Access(oauth=oauth, authorities=self.authority.certificate))

    def with_token(self, token: str) -> Archive:
        return open_archive(self.nginx.token_address, Access(token=token, authorities=self.authority.certificate))


@pytest.fixture(scope="module")
def site(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority = Authority(folder / "authority")
    client = authority.issue("client", folder, name="pathserve")
    (folder / "nginx").mkdir()
    with (
        running_tokens(TokenServer()) as tokens,
        running_nginx(folder / "nginx", authority, orthanc, tokens.check_url) as nginx,
    ):
        yield Site(authority, client, nginx, tokens, folder)


@pytest.fixture
def tokens(site: Site) -> Iterator[TokenServer]:
    """The token server, as new."""
    site.tokens.revoke()
    site.tokens.asked.clear()
    site.tokens.checked = 0
    yield site.tokens
    site.tokens.answer, site.tokens.lifetime_s = None, 3600.0


def test_a_client_certificate(site: Site, slide_uids: tuple[str, str], cache: FrameCache, tmp_path: Path) -> None:
    archive = site.with_certificate()
    archive.probe()
    [entry] = archive.find_series(slide_uids[0])
    files = archive.fetch(entry, cache, wanted={}).files
    result = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert result.SeriesInstanceUID == slide_uids[1]


def test_the_key_may_lie_in_the_certificates_file(site: Site, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(site.client.certificate.read_bytes() + site.client.key.read_bytes())
    access = Access(certificate=both, authorities=site.authority.certificate)
    open_archive(site.nginx.certificate_address, access).probe()


def test_no_client_certificate(site: Site) -> None:
    archive = open_archive(site.nginx.certificate_address, Access(authorities=site.authority.certificate))
    with pytest.raises(ArchiveRefused, match="client certificate"):
        archive.probe()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("foreign", [False, True])
def test_servers_that_break_off_the_handshake(
    site: Site, tmp_path: Path, version: ssl.TLSVersion, foreign: bool
) -> None:
    """nginx explains itself in HTTP; others end the connection, with TLS 1.3 after we have sent our request."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=site.authority.certificate)
    context.load_cert_chain(site.nginx.folder / "server.pem", site.nginx.folder / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    mine = Authority(tmp_path / "foreign", "Other").issue("client", tmp_path, name="x") if foreign else None
    access = Access(
        authorities=site.authority.certificate,
        certificate=mine and mine.certificate,
        key=mine and mine.key,
    )
    with running(RoguePacs(), context) as pacs, pytest.raises(ArchiveRefused, match="client certificate"):
        open_archive(f"dicomweb://localhost:{pacs.port}/rs", access).probe()


def test_a_client_certificate_of_another_authority(site: Site, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "Other Authority").issue("client", tmp_path, name="pathserve")
    with pytest.raises(ArchiveRefused, match="client certificate"):
        site.with_certificate(foreign).probe()


def test_a_client_certificate_that_has_expired(site: Site, tmp_path: Path) -> None:
    """It is not even shown; and one that is renewed on disk is taken up without a restart."""
    mine = site.authority.issue("mine", tmp_path, name="pathserve", days=-1)
    archive = site.with_certificate(mine)
    with pytest.raises(ArchiveRefused, match="has expired"):
        archive.probe()
    site.authority.issue("mine", tmp_path, name="pathserve")
    archive.probe()


def test_an_authority_that_we_do_not_trust(site: Site, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other Authority")
    with pytest.raises(ArchiveRefused, match="not trusted"):
        site.with_certificate(authorities=other.certificate).probe()
    # The operating system does not know it either.
    access = Access(certificate=site.client.certificate, key=site.client.key)
    with pytest.raises(ArchiveRefused, match="not trusted"):
        open_archive(site.nginx.certificate_address, access).probe()


def test_a_certificate_for_another_name(site: Site) -> None:
    """nginx's is for localhost: it has no right to the name that the address says."""
    access = Access(certificate=site.client.certificate, key=site.client.key, authorities=site.authority.certificate)
    address = site.nginx.certificate_address.replace("localhost", "127.0.0.1")
    with pytest.raises(ArchiveRefused, match="another host"):
        open_archive(address, access).probe()


def test_plain_http_is_not_spoken_where_tls_is_configured(site: Site, orthanc: Orthanc) -> None:
    access = Access(authorities=site.authority.certificate)
    with pytest.raises(ArchiveRefused, match=r"TLS 1\.2"):
        open_archive(orthanc.address, access).probe()


def test_plain_http_to_a_port_of_tls(site: Site) -> None:
    with pytest.raises(ArchiveRefused, match="speaks TLS at this loopback address"):
        open_archive(site.nginx.token_address).probe()


def old(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same, but for TLS 1.0 and 1.1 only."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    return context


def test_old_tls_is_refused_by_nginx(site: Site) -> None:
    """The example configuration takes TLS 1.2 and newer only."""
    context = old(ssl.create_default_context(cafile=site.authority.certificate))
    with socket.create_connection(("127.0.0.1", site.nginx.token_port), 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_old_tls_is_refused_by_us(site: Site) -> None:
    context = old(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.load_cert_chain(site.nginx.folder / "server.pem", site.nginx.folder / "server.key")
    with running(RoguePacs(), context) as pacs, pytest.raises(ArchiveRefused, match=r"TLS 1\.2"):
        open_archive(f"dicomweb://localhost:{pacs.port}/rs", Access(authorities=site.authority.certificate)).probe()
    assert pacs.requests == []


def test_tokens_are_asked_for_once(site: Site, tokens: TokenServer, slide_uids: tuple[str, str]) -> None:
    archive = site.with_tokens()
    archive.probe()
    [entry] = archive.find_series(slide_uids[0])
    assert entry.series == slide_uids[1]
    assert len(tokens.asked) == 1
    assert tokens.asked[0] == {"grant_type": ["client_credentials"], "scope": ["dicom.read dicom.write"]}


def test_a_token_that_goes_bad_in_the_middle_of_a_pull(
    site: Site, tokens: TokenServer, slide_uids: tuple[str, str], cache: FrameCache
) -> None:
    archive = site.with_tokens()
    [entry] = archive.find_series(slide_uids[0])
    revoked = 0

    def revoke_some(done: int, total: int | None) -> None:
        nonlocal revoked
        if revoked < 2:
            revoked += 1
            tokens.revoke()

    fetched = archive.fetch(entry, cache, progress=revoke_some)
    assert len(fetched.files) == 8
    assert revoked == 2
    assert 2 <= len(tokens.asked) <= 3


def test_a_token_that_goes_bad_before_a_result_is_sent(
    site: Site, tokens: TokenServer, orthanc: Orthanc, slide_uids: tuple[str, str], tmp_path: Path
) -> None:
    """The body of a request was read already: it has to be sent again in full."""
    archive = site.with_tokens()
    archive.probe()
    result = tmp_path / "result.dcm"
    result.write_bytes(dicom_file("2.25.901", "2.25.902", "2.25.903", pixels=400_000))
    tokens.revoke()
    archive.store([result])
    assert orthanc.file("2.25.903") == result.read_bytes()
    assert len(tokens.asked) == 2


def test_tokens_are_renewed_before_they_expire(tokens: TokenServer) -> None:
    now = 1000.0
    tokens.lifetime_s = 100.0
    ours = Tokens(OAuthClient(tokens.url, CLIENT, SECRET), ssl.create_default_context, Limits(), lambda: now)
    first = ours.authorization()
    now += 79
    assert ours.authorization() == first
    now += 2
    assert ours.authorization() != first
    assert tokens.asked == [{"grant_type": ["client_credentials"]}] * 2


def test_a_token_without_a_lifetime_is_used_until_it_is_refused(tokens: TokenServer) -> None:
    now = 1000.0
    tokens.lifetime_s = None
    ours = Tokens(OAuthClient(tokens.url, CLIENT, SECRET), ssl.create_default_context, Limits(), lambda: now)
    first = ours.authorization()
    now += 1e9
    assert ours.authorization() == first
    assert ours.renew(first)
    second = ours.authorization()
    assert second != first
    assert ours.renew(first)  # another thread's refusal, from before
    assert ours.authorization() == second
    assert first not in repr(ours) + repr(vars(ours)["_client"])


def test_a_fixed_token(site: Site, tokens: TokenServer) -> None:
    basic = base64.b64encode(f"{quote(CLIENT, safe='')}:{quote(SECRET, safe='')}".encode()).decode()
    _, granted = tokens.issue(f"Basic {basic}", {"grant_type": ["client_credentials"]})
    site.with_token(granted["access_token"]).probe()
    with pytest.raises(ArchiveRefused, match="HTTP 401"):
        site.with_token("hidden-word").probe()


def test_a_client_that_is_refused(site: Site, tokens: TokenServer) -> None:
    with pytest.raises(ArchiveRefused, match=r"refuses this client \(invalid_client\)") as caught:
        site.with_tokens(secret="hidden-word").probe()
    assert "hidden-word" not in caught.value.detail
    assert tokens.checked == 0  # the archive was not asked at all


def test_a_token_server_that_is_down(site: Site) -> None:
    with pytest.raises(ArchiveUnavailable, match="token server cannot be reached"):
        site.with_tokens(url=f"http://127.0.0.1:{free_port()}/token").probe()


def test_a_token_server_that_hangs_holds_up_all_threads_once(site: Site) -> None:
    limits = Limits(connect_s=0.5, read_s=0.5, attempts=1)
    failed: list[str] = []

    with running(RoguePacs(store=hang)) as server:
        oauth = OAuthClient(f"http://127.0.0.1:{server.port}/token", CLIENT, SECRET)
        access = Access(oauth=oauth, authorities=site.authority.certificate)
        archive = DicomWebArchive.from_address(site.nginx.token_address, limits, access)

        def probe() -> None:
            try:
                archive.probe()
            except ArchiveUnavailable as error:
                failed.append(error.detail)

        threads = [threading.Thread(target=probe) for _ in range(12)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 5.5  # one after the other, it would be 6
        assert len(failed) == 12
        assert len(server.requests) <= 2
        assert "token server does not answer" in failed[0]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ((503, "text/html", b"<html>"), ArchiveUnavailable, "trouble of its own"),
        ((429, "", b""), ArchiveUnavailable, "trouble of its own"),
        ((302, "", b""), ArchiveRefused, "HTTP 302"),
        ((404, "text/html", b"<html>hidden-word</html>"), ArchiveRefused, "HTTP 404"),
        ((400, "application/json", b'{"error": "invalid_scope"}'), ArchiveRefused, "invalid_scope"),
        ((400, "application/json", b'{"error": "<b>hidden-word</b>"}'), ArchiveRefused, "HTTP 400"),
        ((200, "text/html", b"<html>log in</html>"), ArchiveRefused, "no token"),
        ((200, "application/json", b"[" * 100_000), ArchiveRefused, "no token"),
        ((200, "application/json", b"x" * 1_000_000), ArchiveRefused, "no token"),
        (
            (200, "application/json", b'{"access_token": "two words", "token_type": "Bearer"}'),
            ArchiveRefused,
            "no token",
        ),
        ((200, "application/json", b'{"access_token": "a\\r\\nX-Y: z"}'), ArchiveRefused, "no token"),
        ((200, "application/json", b'{"access_token": "t", "token_type": "mac"}'), ArchiveRefused, "bearer"),
        ((200, "application/json", b'{"access_token": "unknown", "expires_in": "soon"}'), ArchiveRefused, "HTTP 401"),
    ],
)
def test_what_a_token_server_may_say(
    site: Site, tokens: TokenServer, answer: tuple[int, str, bytes], error: type[Exception], says: str
) -> None:
    tokens.answer = answer
    with pytest.raises(error, match=says) as caught:
        site.with_tokens().probe()
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["missing", "no-pem", "key-as-certificate", "other-key", "passphrase", "authorities"])
def test_files_that_are_wrong(site: Site, tmp_path: Path, wrong: str) -> None:
    """Said when the archive is opened, by the name of the setting, not by the name of the file."""
    certificate, key, authorities = site.client.certificate, site.client.key, site.authority.certificate
    other = tmp_path / "other"
    other.write_text("no PEM at all")
    if wrong == "missing":
        key = tmp_path / "not-there"
    elif wrong == "no-pem":
        certificate = other
    elif wrong == "key-as-certificate":
        certificate = site.client.key
    elif wrong == "other-key":
        key = site.authority.key
    elif wrong == "passphrase":
        key = tmp_path / "locked.key"
        subprocess.run(
            ["openssl", "pkey", "-in", site.client.key, "-aes256", "-passout", "pass:x", "-out", key], check=True
        )
    else:
        authorities = other
    with pytest.raises(InvalidSetting, match=r"PATHSERVE_ARCHIVE_(CERTIFICATE|KEY|AUTHORITIES)") as caught:
        open_archive(site.nginx.certificate_address, Access(certificate=certificate, key=key, authorities=authorities))
    assert str(tmp_path) not in caught.value.detail
