"""What the network is encrypted with: the certificate, its key and names, the clients' authority, the CURVE key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from modelops.cli.doctor.findings import Finding, count, typed
from modelops.cli.doctor.network import AREA
from modelops.settings import Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_SOON = timedelta(days=30)
_RENEW = "get a new one from whoever made it ('modelops tls self-signed' makes one); a coordinator takes it as it runs"
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, and listened on by nobody


def certificate(settings: Settings) -> Iterator[Finding]:
    """Whether a start takes the files, how long they hold, and for which names."""
    from modelops.app import StartError, listening_of

    tls = settings.tls
    if not (tls.cert_file or tls.key_file or tls.client_ca_file):
        return
    try:
        listening_of(settings.model_copy(update={"tls": tls.model_copy(update={"curve_file": None})}))
    except StartError as error:
        found, _, todo = str(error).partition(": give ")
        mend = f"give {todo}" if todo else "name readable files that belong together: tls.cert_file and tls.key_file"
        yield AREA.wrong("certificate", found, mend)
        return
    if tls.client_ca_file:
        yield from _lifetime("client authority", _read(tls.client_ca_file), tls.client_ca_file)
    if tls.cert_file and tls.key_file:
        chain = _read(tls.cert_file)
        yield from _lifetime("certificate", chain, tls.cert_file)
        yield from _names(chain[0], settings.server.host)
        if tls.key_file.stat().st_mode & 0o007:  # a group of its own is a custom of some systems
            open_to_all = f"every user of this machine may read the private key {tls.key_file}"
            yield AREA.warning("private key", open_to_all, f"chmod o= {typed(tls.key_file)}")


def curve_key(settings: Settings) -> Iterator[Finding]:
    """Whether ZMQ's key can be used, and who may read it."""
    from modelops.transports.listening import CertificateError, key_pair

    file = settings.tls.curve_file
    if file is None:
        return
    try:
        key_pair(file)
    except CertificateError as error:
        make = f"make it: modelops keys curve, with tls.curve_file (MODELOPS_TLS__CURVE_FILE) naming {file}"
        yield AREA.refused("CURVE key", str(error), make)
        return
    if file.stat().st_mode & 0o077:
        yield AREA.warning("CURVE key", f"others may open {file}, which is secret", f"chmod 600 {typed(file)}")
    else:
        yield AREA.ok("CURVE key", f"{file}: ZMQ is encrypted")


def _read(file: Path) -> list[Certificate]:
    from cryptography import x509

    return x509.load_pem_x509_certificates(file.read_bytes())


def _lifetime(name: str, chain: Sequence[Certificate], file: Path) -> Iterator[Finding]:
    """From the latest beginning to the first end of all that are in the file."""
    now = datetime.now(UTC)
    begin = max(one.not_valid_before_utc for one in chain)
    end = min(one.not_valid_after_utc for one in chain)
    if end <= now:
        yield AREA.wrong(name, f"{file} is over since {_day(end)}: clients refuse it", _RENEW)
    elif begin > now:
        yield AREA.wrong(name, f"{file} is not valid before {_day(begin)}", "look at this machine's clock: date -u")
    elif end - now < _SOON:
        yield AREA.warning(name, f"{file} ends in {count((end - now).days, 'day')}, on {_day(end)}", _RENEW)
    else:
        yield AREA.ok(name, f"{file} is valid until {_day(end)}")


def _names(leaf: Certificate, host: str) -> Iterator[Finding]:
    """Whether clients that reach it over the network find what they call it."""
    from cryptography import x509

    from modelops.transports.listening import is_loopback

    try:
        general = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = []
    else:
        names = [*general.get_values_for_type(x509.DNSName), *map(str, general.get_values_for_type(x509.IPAddress))]
    told = ", ".join(names)
    again = "make it again with each name by which clients call this machine: modelops tls self-signed --host NAME"
    if not names:
        yield AREA.warning("names", "the certificate has no names: clients refuse it", again)
    elif is_loopback(host):
        yield AREA.ok("names", f"it is for {told}")
    elif all(map(is_loopback, names)):
        yield AREA.warning("names", f"it is for {told} only, and not for what others call this machine", again)
    elif host not in _WILDCARDS and host not in names:
        yield AREA.warning("names", f"it is for {told}, and not for {host}, which is listened on", again)
    else:
        yield AREA.ok("names", f"it is for {told}")


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")
