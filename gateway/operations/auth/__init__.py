"""Who may come in: API keys, OpenID Connect tokens, client credentials, client certificates; and what each may do."""

from gateway.operations.auth.api_key import ApiKey, load_api_key
from gateway.operations.auth.authenticator import Authenticator

__all__ = ["ApiKey", "Authenticator", "load_api_key"]
