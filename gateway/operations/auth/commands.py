"""`pathserve keys …` and `pathserve clients …`: who may come in, changed by whoever may write the server's database."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from gateway.domain.principal import DEFAULT_TENANT, Scope
from gateway.operations.auth.clients import Client, Clients
from gateway.operations.auth.keys import Keys
from gateway.operations.auth.store import Store
from gateway.operations.database import open_database
from gateway.operations.errors import InvalidInput
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings

_FILE_BYTES = 512 * 1024
_DAYS = 3650
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_key(name: str, scopes: Sequence[str], tenant: str | None, expires_days: int | None) -> int:
    """Print the new key, alone on stdout. Raises InvalidInput, StateError and its kinds, as all of these do."""
    settings = load_settings()
    expires = None
    if expires_days is not None:
        if not 1 <= expires_days <= _DAYS:
            raise InvalidInput(f"--expires-days takes 1 to {_DAYS} days.")
        expires = datetime.now(UTC) + timedelta(days=expires_days)
    with _store(settings) as store:
        _, text = Keys(store).create(
            name, map(Scope, scopes), tenant_named(tenant, settings), expires, operator().subject
        )
    print(text)
    return 0


def list_keys(*, as_json: bool) -> int:
    with _store(load_settings()) as store:
        found = Keys(store).all()
    items = [
        {
            "id": key.id,
            "name": key.name,
            "tenant": key.tenant,
            "scopes": sorted(key.scopes),
            "created": key.created,
            "expires": key.expires,
            "revoked": key.revoked,
        }
        for key in found
    ]
    return _print(items, as_json=as_json)


def revoke_key(key: str) -> int:
    with _store(load_settings()) as store:
        Keys(store).revoke(key, operator().subject)
    print(f"The key {key} is revoked.")
    return 0


def add_client(
    client: str,
    name: str | None,
    scopes: Sequence[str],
    tenant: str | None,
    *,
    jwks: Path | None,
    jwks_url: str | None,
    certificate: Path | None,
) -> int:
    """Register a system by its public keys, by where it publishes them, or by its certificate. Raises Conflict too."""
    settings = load_settings()
    added = Client(
        id=client,
        name=name or client,
        tenant=tenant_named(tenant, settings),
        scopes=frozenset(map(Scope, scopes)),
        jwks=None if jwks is None else _keys_of(jwks),
        jwks_url=jwks_url,
        certificate_sha256=None if certificate is None else _fingerprint(certificate),
    )
    with _store(settings) as store:
        Clients(store).add(added, operator().subject)
    print(f"The client {client} is registered.")
    return 0


def list_clients(*, as_json: bool) -> int:
    with _store(load_settings()) as store:
        found = Clients(store).all()
    items = [
        {
            "id": client.id,
            "name": client.name,
            "tenant": client.tenant,
            "scopes": sorted(client.scopes),
            "shows": _shows(client),
            "revoked": client.revoked,
        }
        for client in found
    ]
    return _print(items, as_json=as_json)


def revoke_client(client: str) -> int:
    with _store(load_settings()) as store:
        Clients(store).revoke(client, operator().subject)
    print(f"The client {client} is revoked.")
    return 0


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    engine = open_database(settings.ledger_url, settings.state)
    try:
        yield Store(engine)
    finally:
        engine.dispose()


def tenant_named(named: str | None, settings: Settings) -> str:
    """The tenant that a command is about: as it was given, else the server's. Raises InvalidInput."""
    tenant = named or settings.tenant or DEFAULT_TENANT
    if not _TENANT.fullmatch(tenant):
        raise InvalidInput("A tenant has 1 to 64 letters, digits, dots, dashes and underscores.")
    if settings.tenant is not None and tenant != settings.tenant:
        raise InvalidInput(f"This server serves the tenant {settings.tenant} alone (PATHSERVE_TENANT).")
    return tenant


def _keys_of(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInput('The file given by --jwks is no JSON Web Key Set: write {"keys": […]}.')
    return found


def _fingerprint(file: Path) -> str:
    """Of the first certificate of the file: the client's own, where its chain follows."""
    try:
        return load_pem_x509_certificate(_read(file)).fingerprint(SHA256()).hex()
    except ValueError:
        raise InvalidInput("The file given by --certificate is not a certificate in PEM.") from None


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _FILE_BYTES:
            raise InvalidInput(f"The file {file.name} is too large to be one of keys or of a certificate.")
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"The file {file.name} cannot be read ({error.strerror}).") from None


def _shows(client: Client) -> str:
    if client.jwks_url is not None:
        return f"an assertion by a key of {client.jwks_url}"
    return "an assertion by its keys" if client.jwks is not None else "a certificate"


def _print(items: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"items": items}, indent=2, default=datetime.isoformat))
        return 0
    for item in items:
        words = [item["id"], item["name"], f"tenant {item['tenant']}", " ".join(item["scopes"])]
        words += [f"{name} {_shown(value)}" for name, value in list(item.items())[4:] if value is not None]
        print(" · ".join(words))
    return 0


def _shown(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC" if isinstance(value, datetime) else str(value)
