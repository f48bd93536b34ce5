"""Certificates made by openssl: an authority of a test's own, and what it issues."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """An authority below `folder`, which is made."""

    def __init__(self, folder: Path, name: str = "Test Authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.certificate = folder / "authority.key", folder / "authority.pem"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-keyout", self.key, "-out", self.certificate, "-days", "30"),
            *("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def issue(self, file: str, folder: Path, *, name: str, days: int = 2) -> Issued:
        """A certificate for a host or a client of this name; with negative days it has expired."""
        folder.mkdir(parents=True, exist_ok=True)
        issued = Issued(folder / f"{file}.pem", folder / f"{file}.key")
        request, extensions = folder / f"{file}.csr", folder / f"{file}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("req", *_NEW_KEY, "-keyout", issued.key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"),
            *("-out", issued.certificate, "-days", str(days), "-extfile", extensions),
        )
        return issued


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
