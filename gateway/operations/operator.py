"""Whoever runs our own commands on the server's machine, as the audit trail knows it."""

import os
import pwd

from gateway.domain.principal import DEFAULT_TENANT, MACHINE_SCOPES, Principal, PrincipalKind


def operator() -> Principal:
    """The process's user: by its number, since what the environment says of a name, anybody may have written.

    It works for every tenant, and holds every scope but `analyses:sign`, which only a person's token gives.
    """
    try:
        name = pwd.getpwuid(os.getuid()).pw_name[:128]
    except KeyError:  # a user without a name
        name = f"user {os.getuid()}"
    return Principal(f"device:{name}", PrincipalKind.DEVICE, DEFAULT_TENANT, MACHINE_SCOPES, name=name)
