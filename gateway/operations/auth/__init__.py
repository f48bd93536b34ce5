"""Who may come in: API keys, OpenID Connect tokens, client credentials, client certificates; and what each may do."""

from gateway.operations.auth.api_key import ApiKey, load_api_key

__all__ = ["ApiKey", "load_api_key"]
