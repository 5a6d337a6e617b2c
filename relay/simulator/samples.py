"""Synthetic incidents that read like real ones, and changes to them. Invented from the schema; none was seen live."""

import random
from collections.abc import Callable, Mapping
from typing import Any

SEVERITIES = (
    "INCIDENT_SEVERITY_LEVEL_UNSPECIFIED",
    "INCIDENT_SEVERITY_LEVEL_LOW",
    "INCIDENT_SEVERITY_LEVEL_MEDIUM",
    "INCIDENT_SEVERITY_LEVEL_HIGH",
)
OPEN = "INCIDENT_STATUS_OPEN"
IN_PROGRESS = "INCIDENT_STATUS_IN_PROGRESS"
CLOSED = "INCIDENT_STATUS_CLOSED"
WAITING = "INCIDENT_STATUS_WAITING_FOR_INPUT"
STATUSES = ("INCIDENT_STATUS_UNSPECIFIED", OPEN, IN_PROGRESS, CLOSED, WAITING)
UNRESOLVED = "INCIDENT_RESOLVE_REASON_UNSPECIFIED"
RESOLVE_REASONS = (
    UNRESOLVED,
    "INCIDENT_RESOLVE_REASON_TRUE_POSITIVE",
    "INCIDENT_RESOLVE_REASON_FALSE_POSITIVE",
    "INCIDENT_RESOLVE_REASON_SUSPICIOUS",
)

_STORIES = (
    ("Ransomware behavior: shadow copies deleted", "vssadmin removed all shadow copies on {device}.", "ransomware"),
    ("Suspicious PowerShell download cradle", "An encoded command fetched a payload on {device}.", "execution"),
    ("LSASS memory read by an unsigned process", "Credential dumping is likely on {device}.", "credential-access"),
    ("Office application spawned a script host", "A macro started wscript.exe on {device}.", "phishing"),
    ("Brute force against Remote Desktop", "212 failed logons from one address, then a success, on {device}.", "rdp"),
    ("Beaconing to a rare domain", "{device} calls the same host every 60 s with jitter.", "command-and-control"),
    ("New local administrator created at night", "An account was added and used at once on {device}.", "persistence"),
    ("Lateral movement through remote services", "psexec-like service installed from {device}.", "lateral-movement"),
    ("Large archive uploaded to cloud storage", "7-Zip packed 3.1 GB before an upload from {device}.", "exfiltration"),
    ("Security product tampering attempt", "A driver tried to unload protection on {device}.", "defense-evasion"),
    ("Coin miner in a scheduled task", "A renamed xmrig runs on {device}.", "miner"),
    ("Exploit attempt against a web server", "A web shell was written below inetpub on {device}.", "initial-access"),
)
_SITES = ("BRA", "VIE", "MUC", "PRG", "KRK", "NYC", "TYO")
_ROLES = ("LT", "WS", "SRV", "DC", "SQL")
_EXTRA_TAGS = ("vip", "server", "after-hours", "edr-rule", "needs-review")


def new_uuid(rng: random.Random) -> str:
    """A random UUID of version 4, drawn from `rng`."""
    digits = f"{rng.getrandbits(124):031x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{rng.choice('89ab')}{digits[15:18]}-{digits[18:30]}"


def sample_incident(rng: random.Random) -> dict[str, Any]:
    """The fields of a new incident but for its uuid and times, device and detection uuids included."""
    title, text, tag = rng.choice(_STORIES)
    device = f"{rng.choice(_SITES)}-{rng.choice(_ROLES)}-{rng.randrange(1000):03d}"
    devices = rng.choice((1, 1, 1, 2, 3))
    return {
        "displayName": f"{title} on {device}",
        "description": text.format(device=device),
        "severity": rng.choice(SEVERITIES[1:]),
        "status": OPEN,
        "resolveReason": UNRESOLVED,
        "assigneeUuid": "",
        "tags": [tag, rng.choice(_EXTRA_TAGS)] if rng.random() < 0.5 else [tag],
        "metrics": {
            "deviceCount": devices,
            "executableCount": rng.randrange(1, 5),
            "processCount": rng.randrange(1, 30),
        },
        "deviceUuids": [new_uuid(rng) for _ in range(devices)],
        "detectionUuids": [new_uuid(rng) for _ in range(devices)],
    }


def sample_change(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `fields` with new values, as an analyst or the product might set them; never nothing."""
    return rng.choice(_CHANGES)(rng, fields)


def closing(rng: random.Random, reason: str = "") -> dict[str, Any]:
    """What closing sets."""
    return {
        "status": CLOSED,
        "resolveReason": reason or rng.choice(RESOLVE_REASONS[1:]),
        "responseDuration": f"{rng.randrange(60, 90_000)}.{rng.randrange(10)}s",
    }


def reopening() -> dict[str, Any]:
    """What reopening sets."""
    return {"status": OPEN, "resolveReason": UNRESOLVED}


def _severity(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"severity": rng.choice([level for level in SEVERITIES[1:] if level != fields.get("severity")])}


def _progress(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    status = WAITING if fields.get("status") == IN_PROGRESS else IN_PROGRESS
    return {"status": status, "assigneeUuid": new_uuid(rng), "triageDuration": f"{rng.randrange(30, 7200)}s"}


def _growth(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    metrics = fields.get("metrics")
    before = metrics if isinstance(metrics, dict) else {}
    grown = {
        name: int(before.get(name) or 0) + rng.randrange(1, 4)
        for name in ("deviceCount", "executableCount", "processCount")
    }
    return {"metrics": grown}


def _note(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": f"{fields.get('description') or ''} Case {rng.randrange(10**6):06d}.".strip()[-400:]}


def _tags(rng: random.Random, fields: Mapping[str, Any]) -> dict[str, Any]:
    tags = fields.get("tags")
    before = tags if isinstance(tags, list) else []
    tag = rng.choice(_EXTRA_TAGS)
    return {"tags": [known for known in before if known != tag] if tag in before else [*before, tag]}


_CHANGES: tuple[Callable[[random.Random, Mapping[str, Any]], dict[str, Any]], ...] = (
    _severity,
    _progress,
    _growth,
    _note,
    _tags,
)
