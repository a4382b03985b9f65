"""How Redis and RabbitMQ are reached over TLS: their certificates always have to hold."""

import ssl
from pathlib import Path
from typing import Any


def tls_options(url: str, ca: Path | None) -> dict[str, Any]:
    """What the clients of a rediss:// or amqps:// address take; nothing for a plain one.

    Left to themselves kombu verifies no certificate of a Redis, and py-amqp no host's name.
    ca: a file of CA certificates of one's own. A Redis' client trusts the system's as well.
    """
    file = str(ca) if ca else None
    if url.startswith("rediss://"):
        return {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_check_hostname": True,
            "ssl_ca_certs": file,
        }
    if url.startswith("amqps://"):
        # kombu puts the host of the address in the place of this None.
        return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None, "ca_certs": file}
    return {}
