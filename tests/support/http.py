"""How the tests ask a server on loopback."""

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""httpx's `verify` where the server speaks plain HTTP: without it every request reads all of the system's authorities
anew, which costs ten times what the request does."""
