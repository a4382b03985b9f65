"""Certificates of TLS: whose word counts, and in words what is wrong with one."""

import re
import ssl
from pathlib import Path

_REFUSED = re.compile(r"certificate verify failed: (.+?)\.? \(_ssl")
_UNKNOWN = re.compile("self.signed|issuer|unable to verify")
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER|wrong version number|record layer failure")
PLAIN = "it does not speak TLS"


def trusting(ca: Path | None) -> ssl.SSLContext:
    """For a client: the system's CAs count, and those in this file.

    Raises ValueError for a file that cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise ValueError(f"{str(ca)!r} holds no CA certificates in PEM") from None
        except OSError as error:
            raise ValueError(f"{str(ca)!r} cannot be read: {error.strerror}") from None
    return context


def trouble_of(said: str) -> str:
    """Why a connection by TLS came to nothing, from what any client says; "": it was not TLS."""
    if refused := _REFUSED.search(said):
        unknown = _UNKNOWN.search(refused[1])
        todo = ": name the file of the CA that signed it in PPV_TLS_CA" if unknown else ""
        return f"its certificate does not hold, {refused[1]}{todo}"
    return PLAIN if _NO_TLS.search(said) else ""
