"""Certificates of an authority made for a test, and the server's side of TLS with them."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """An authority, and a server and a client of it; each file holds the certificate and its key."""

    ca: Path
    server: Path
    client: Path


def make_certificates(folder: Path, address: str = "127.0.0.1") -> Certificates:
    """New ones, by openssl, good for two days and for this address."""
    made = {name: folder / f"{name}.pem" for name in ("ca", "server", "client")}
    for name, path in made.items():
        options = (
            ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
            if name == "ca"
            else [
                "-CA",
                made["ca"],
                "-CAkey",
                folder / "ca.key",
                "-addext",
                f"subjectAltName=IP:{address}",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ]
        )
        command: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", path]
        subprocess.run([*command, *options], check=True, capture_output=True)
        path.write_bytes(path.read_bytes() + (folder / f"{name}.key").read_bytes())
    return Certificates(**made)


def server_tls(certificates: Certificates, *, ask_client: bool = False) -> ssl.SSLContext:
    """A server with its certificate, which may ask for the client's."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED if ask_client else ssl.CERT_NONE
    return context
