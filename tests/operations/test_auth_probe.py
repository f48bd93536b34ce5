"""What the doctor says of who may come in: our certificate's last day, the identity provider's keys."""

from pathlib import Path

import pytest

from gateway.operations.auth.probe import probe
from gateway.operations.certificates import valid_until
from gateway.operations.errors import IdentityProviderUnavailable, InvalidSetting
from gateway.operations.settings import Settings
from tests.support.certificates import Authority
from tests.support.oidc_issuer import Issuer, running_issuer


def test_nothing_is_set() -> None:
    assert list(probe(Settings())) == []


def test_the_last_day_of_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    for days, well in ((40, True), (5, False), (-1, False)):
        issued = authority.issue(f"s{days}", tmp_path, name="localhost", days=days)
        given = Settings(tls_certificate=issued.certificate, tls_key=issued.key)
        [(name, passes, sentence)] = probe(given)
        assert (name, passes, "have it renewed" in sentence) == ("server certificate", well, not well)
        assert f"{valid_until(issued.certificate, 'X'):%Y-%m-%d}" in sentence
    with pytest.raises(InvalidSetting, match="X names cannot be read"):
        valid_until(tmp_path / "none", "X")
    with pytest.raises(InvalidSetting, match="X is not a certificate"):
        valid_until(issued.key, "X")
    # The first of the file, whatever stands before it.
    both = tmp_path / "both.pem"
    both.write_text("a note\n" + issued.key.read_text() + issued.certificate.read_text())
    assert valid_until(both, "X") == valid_until(issued.certificate, "X")


def test_the_identity_provider() -> None:
    with running_issuer(Issuer()) as issuer:
        given = Settings(oidc_issuer=issuer.url)
        assert list(probe(given)) == [("identity provider", True, "its keys can be fetched (1)")]
        issuer.keys.clear()
        [(_, passes, _)] = probe(given)
        assert not passes
        issuer.answer = b"no"
        with pytest.raises(IdentityProviderUnavailable):
            list(probe(given))
    with pytest.raises(IdentityProviderUnavailable):
        list(probe(given))
