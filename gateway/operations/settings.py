"""All settings, from the environment (`PATHSERVE_…`) or the same keys in `pathserve.toml`; see docs/settings.md."""

import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.operations.errors import InvalidSetting

_CHECKOUT = Path(__file__).resolve().parents[2]


def _default_state() -> Path:
    return Path.home() / ".local" / "share" / "pathserve"


class Settings(BaseSettings):
    """The settings of one process. Environment wins over `pathserve.toml` in the working directory."""

    model_config = SettingsConfigDict(
        env_prefix="PATHSERVE_", toml_file="pathserve.toml", extra="ignore", frozen=True, env_ignore_empty=True
    )

    state: Path = Field(default_factory=_default_state, description="Folder of database, cache, artefacts and logs")
    archive: Annotated[str | None, NoDecode] = Field(
        default=None, description="Default archive; folder:DIR or dicomweb://…"
    )
    archive_token: SecretStr | None = Field(default=None, description="Bearer token for a DICOMweb archive")
    archive_oauth_url: str | None = Field(
        default=None, description="Token endpoint (OAuth 2.0 client credentials) of a DICOMweb archive; TLS or loopback"
    )
    archive_oauth_client_id: str | None = Field(default=None, description="Our client id at the token endpoint")
    archive_oauth_client_secret: SecretStr | None = Field(
        default=None, description="Our client secret at the token endpoint"
    )
    archive_oauth_scope: str | None = Field(default=None, description="Scopes asked for, with blanks between them")
    archive_certificate: Path | None = Field(
        default=None, description="PEM file of our client certificate and its chain, for mutual TLS with the archive"
    )
    archive_key: Path | None = Field(
        default=None, description="PEM file of its private key, without a passphrase; unset = in the certificate's file"
    )
    archive_authorities: Path | None = Field(
        default=None, description="PEM file of the authorities that are trusted in place of the operating system's"
    )
    cache_bytes: int = Field(
        default=20 * 2**30, ge=2**20, description="Most bytes of slides that the frame cache in the state folder holds"
    )
    segmentation_type: Literal["BINARY", "LABELMAP"] = Field(
        default="BINARY", description="How a DICOM segmentation holds its classes; not every viewer shows LABELMAP"
    )
    model_repository: Path = Field(default=_CHECKOUT / "model_repository", description="What Triton serves")
    triton_url: str | None = Field(default=None, description="External Triton (host:port, gRPC); unset = embedded")
    triton_venv: Path = Field(
        default=Path(sys.prefix).parent / ".venv-triton", description="Virtual environment of the embedded Triton"
    )
    triton_backends: Path = Field(
        default=_CHECKOUT / "deploy" / "triton" / "backends", description="Our Python-based backends"
    )
    import_venv: Path = Field(
        default=Path(sys.prefix).parent / ".venv-import", description="Virtual environment that converts vendor formats"
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy address of the ledger; unset = SQLite file pathserve.db in the state folder",
    )
    specimen_codes: dict[str, str] = Field(
        default={},
        description="SNOMED CT codes of a laboratory's own codes of specimens and sites, by SCHEME|CODE: a JSON object",
    )
    metrics_port: int = Field(
        default=9464, ge=0, le=65535, description="Loopback port of /metrics, bound by serve; 0 = any free one"
    )
    fetch_limit: int = Field(default=2, ge=1, le=64, description="Cases that one worker fetches at the same time")
    infer_limit: int = Field(default=1, ge=1, le=64, description="Cases that one worker infers at the same time")
    deliver_limit: int = Field(default=2, ge=1, le=64, description="Deliveries that one worker makes at the same time")
    deadline_s: float = Field(
        default=4 * 3600.0, gt=0, le=30 * 86400.0, description="Seconds after its acceptance by which an analysis ends"
    )
    delivery_attempts: int = Field(
        default=150, ge=1, le=1000, description="Tries of a delivery before it is a dead letter, to be replayed by hand"
    )
    delivery_delay_s: float = Field(
        default=2.0, ge=0.0, le=600.0, description="Pause before its second try in seconds; doubled, at most 600"
    )
    delivery_wait_s: float = Field(
        default=600.0, ge=0.0, description="Seconds that an analysis waits for its delivery before it ends without it"
    )
    webhooks: tuple[str, ...] = Field(
        default=(), description="Addresses that are told how analyses end, as a JSON list of URLs"
    )
    webhook_secrets: tuple[SecretStr, ...] = Field(
        default=(), description="whsec_… secrets that sign webhooks, as a JSON list; several while one is rotated"
    )
    outbound_hosts: tuple[str, ...] = Field(
        default=(),
        description="Further hosts (HOST or HOST:PORT) that may be called besides those of the configured addresses: "
        "a JSON list",
    )
    rate_limit: int = Field(default=200, ge=1, description="Requests a second that one caller may make")
    login_limit: int = Field(default=60, ge=1, description="Refused logins a minute that one address may make")
    tenant: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The tenant that a single-tenant server serves"
    )
    oidc_issuer: str | None = Field(default=None, description="OpenID Connect issuer of bearer tokens; TLS or loopback")
    oidc_audience: str = Field(default="pathserve", description="The audience (`aud`) that tokens are made for")
    public_url: str | None = Field(
        default=None, description="Address under which clients reach the API, where it is not the bound one"
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file of the server's certificate and its chain")
    tls_key: Path | None = Field(default=None, description="PEM file of its private key, without a passphrase")
    tls_client_authorities: Path | None = Field(
        default=None, description="PEM file of the authorities of client certificates; set = a certificate is asked for"
    )
    tls_elsewhere: bool = Field(
        default=False, description="A proxy before the server ends TLS: other addresses than loopback may be bound"
    )
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the gRPC API, on the host of serve; unset = none, 0 = any"
    )
    retry_attempts: int = Field(
        default=5, ge=1, le=100, description="Tries of a step whose error may pass (archive or Triton not reachable)"
    )
    retry_delay_s: float = Field(
        default=2.0,
        ge=0.0,
        le=600.0,
        description="Pause before the second try in seconds; doubled each time, at most 60",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged")
    api_key: SecretStr | None = Field(default=None, description="The API key; unset = generated and printed once")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        # In the environment it is so already; an empty key from the file would open the API to everybody.
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().split()) != 1:
            raise ValueError("a key has no blanks")
        return value

    @field_validator("archive")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("folder:", "dicomweb://")):
            raise ValueError("write folder:DIR or dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH")
        return value

    @field_validator(
        *("archive_certificate", "archive_key", "archive_authorities"),
        *("tls_certificate", "tls_key", "tls_client_authorities"),
    )
    @classmethod
    def _absolute_with_its_links(cls, value: Path | None) -> Path | None:
        # Not resolved: certificates that are renewed are often links that move.
        return None if value is None else value.expanduser().absolute()

    @field_validator("state", "model_repository", "triton_backends")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("triton_venv", "import_venv")
    @classmethod
    def _absolute_but_not_resolved(cls, value: Path) -> Path:
        # A virtual environment may be reached through a link; resolving its interpreter would leave it.
        return value.expanduser().absolute()

    @property
    def archive_address(self) -> str:
        """The default archive's address: the configured one, or a folder inside the state."""
        return self.archive or f"folder:{self.state / 'archive'}"

    @property
    def ledger_url(self) -> str:
        """The ledger's database: the configured one, or a SQLite file inside the state."""
        return self.database_url or f"sqlite:///{self.state / 'pathserve.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))


@cache
def settings() -> Settings:
    """This process's settings, read once. Raises InvalidSetting with the name of the first wrong one."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "PATHSERVE_" + "_".join(str(part).upper() for part in first["loc"])
        raise InvalidSetting(f"The setting {name} is not valid: {first['msg']}. Correct it and start again.") from None
    except (OSError, ValueError):  # tomllib's own errors are ValueErrors
        raise InvalidSetting(
            "pathserve.toml in the working directory cannot be read as TOML. Correct it or remove it."
        ) from None
    except RuntimeError:  # what pathlib raises for a user without a home folder
        raise InvalidSetting(
            "A folder among the settings cannot be found: this user has no home folder, or a link leads to itself. "
            "Set PATHSERVE_STATE to an absolute path."
        ) from None
