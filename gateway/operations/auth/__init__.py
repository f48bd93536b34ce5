"""Who may come in: API keys, OpenID Connect tokens, client credentials, client certificates; and what each may do."""

from gateway.operations.auth.api_key import ApiKey, load_api_key
from gateway.operations.auth.authenticator import TOKEN_PATH, Authenticator
from gateway.operations.auth.grants import Form, Grant, GrantRefused
from gateway.operations.auth.metrics import LOGINS_REFUSED
from gateway.operations.auth.refusal import forwarded_address
from gateway.operations.auth.tls import server_context

__all__ = [
    "LOGINS_REFUSED",
    "TOKEN_PATH",
    "ApiKey",
    "Authenticator",
    "Form",
    "Grant",
    "GrantRefused",
    "forwarded_address",
    "load_api_key",
    "server_context",
]
