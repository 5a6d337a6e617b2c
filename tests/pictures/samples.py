"""The events behind the pictures: ordinary ones, and one whose text tries everything."""

from typing import Any

import msgspec

from relay.clock import SECOND, Instant
from relay.formats import native
from relay.formats.message import Parked, Skipped
from relay.incidents import SEVERITY_PREFIX, Event, Kind, parse_instant
from relay.sinks import Delivery

UUID = "9d2a7f01-77a4-4e21-b7d7-0c1bb3b2f7aa"
LINK = "https://console.example/incidents/{uuid}"
LINKS = {"acme": LINK, "globex": LINK, "initech": LINK}
NOW = parse_instant("2026-11-22T10:14:32Z")

_ROWS: tuple[tuple[str, Kind, str, str], ...] = (
    ("HIGH", "created", "Ransomware behaviour: 1,204 files renamed in 40 s on SRV-FILE-02", "acme"),
    ("HIGH", "created", "Lateral movement: PsExec service created on SRV-DC-01 by a workstation account", "acme"),
    ("HIGH", "reopened", "Webshell written to inetpub by w3wp.exe on SRV-WEB-05", "globex"),
    (
        "HIGH",
        "closed",
        "<!channel> *<https://evil.example|Beacon over DNS TXT records>* to a domain registered 2 days ago",
        "globex",
    ),
    ("MEDIUM", "created", "RDP brute force from 203.0.113.77, 318 attempts on SRV-TS-03", "acme"),
    ("MEDIUM", "created", "Shadow copies deleted by vssadmin.exe on SRV-SQL-04", "acme"),
    ("MEDIUM", "created", "PowerShell started a download cradle from winword.exe on HR-PC-1140", "initech"),
    ("MEDIUM", "updated", "New scheduled task runs from a user profile on ENG-WS-0417", "acme"),
    ("MEDIUM", "updated", "Unsigned driver loaded by an installer on ENG-WS-0388", "initech"),
    ("MEDIUM", "closed", "Office child process wrote an executable to a startup folder", "globex"),
)


def event(
    position: int = 1,
    *,
    kind: Kind = "created",
    source: str = "acme",
    uuid: str = UUID,
    severity: str = "HIGH",
    updated: Instant = 0,
    changed: list[str] | None = None,
    previous: dict[str, Any] | None = None,
    **incident: Any,
) -> Delivery:
    """The delivery of an event whose incident has these fields; an unread past is `changed` None of an update."""
    updated = updated or parse_instant("2026-11-22T10:14:20Z")
    severity = severity if severity.startswith(SEVERITY_PREFIX) else SEVERITY_PREFIX + severity
    unread = kind == "updated" and changed is None
    body = native.render(
        Event(
            id=f"{position:032x}",
            kind=kind,
            source=source,
            origin="poll",
            uuid=uuid,
            sequence=position,
            updated=updated,
            observed=updated,
            severity=severity,
            changed=None if unread else changed or [],
            previous=None if unread else previous or {},
            incident=msgspec.json.encode({"uuid": uuid, "severity": severity, **incident}),
        )
    )
    return Delivery(
        position=position,
        id=f"{position:032x}",
        kind=kind,
        source=source,
        origin="poll",
        uuid=uuid,
        sequence=position,
        updated=updated,
        severity=severity,
        body=body,
    )


def created() -> Delivery:
    """A new one, whose name tries a mention, a link and markup of both far sides."""
    return event(
        displayName="Credential dumping on FIN-LT-0231 <!channel> <at>everyone</at> "
        "[Open in ESET console](https://evil.example) *urgent* {{DATE(2020-01-01T00:00:00Z)}}",
        status="INCIDENT_STATUS_OPEN",
        assigneeUuid="",
        metrics={"deviceCount": 3, "executableCount": 2, "processCount": 5},
        description="LSASS memory was read by an unsigned copy of procdump64.exe, started from a mail attachment. "
        "Look at <b>this</b> & visit http://evil.example/?a=1",
    )


def closed() -> Delivery:
    """A closed one."""
    return event(
        2,
        kind="closed",
        updated=parse_instant("2026-11-22T11:02:05Z"),
        displayName="Credential dumping: LSASS memory read by procdump64.exe on FIN-LT-0231",
        status="INCIDENT_STATUS_CLOSED",
        resolveReason="INCIDENT_RESOLVE_REASON_FALSE_POSITIVE",
        changed=["status", "resolveReason"],
        previous={"status": "INCIDENT_STATUS_OPEN", "resolveReason": "INCIDENT_RESOLVE_REASON_UNSPECIFIED"},
    )


def many() -> list[Delivery]:
    """37 changes: those of `_ROWS`, and others that no digest lists."""
    end = parse_instant("2026-11-22T10:14:20Z")
    begin = parse_instant("2026-11-22T09:58:02Z")
    listed = [
        event(
            at + 1,
            kind=kind,
            source=source,
            severity=severity,
            uuid=f"{UUID[:-2]}{at:02d}",
            updated=end - at * SECOND,
            displayName=title,
        )
        for at, (severity, kind, title, source) in enumerate(_ROWS)
    ]
    sources = ["acme"] * 17 + ["globex"] * 6 + ["initech"] * 4
    severities = ["MEDIUM"] * 6 + ["LOW"] * 21
    rest = [
        event(at + 11, source=source, severity=severity, uuid=f"{UUID[:-2]}{at + 10:02d}", updated=begin + at * SECOND)
        for at, (source, severity) in enumerate(zip(sources, severities, strict=True))
    ]
    return [*rest, *listed]


def parked_webhook() -> Parked:
    """What the sink learns that `soar` names in `notify`."""
    return Parked(
        sink="soar",
        reason="soar.example answered 410 Gone",
        since=parse_instant("2026-11-22T10:14:20Z"),
        waiting=9,
        oldest=parse_instant("2026-11-22T10:00:02Z"),
        kept_until=parse_instant("2026-11-29T10:00:02Z"),
        cure="Correct the URL of the sink or its receiver, then run:",
    )


def parked_slack() -> Parked:
    """What Teams is told of Slack."""
    return Parked(
        sink="soc",
        reason="Slack answered 404 no_service: this webhook was removed; "
        "create a new incoming webhook in Slack, write its URL to the sink's url_file",
        since=parse_instant("2026-11-21T21:40:12Z"),
        waiting=118,
        skipped_from=parse_instant("2026-11-22T21:40:11Z"),
        place="Slack",
    )


def skipped() -> Skipped:
    """What is said after an outage."""
    return Skipped(
        sink="soc",
        severities={"HIGH": 2, "MEDIUM": 11, "LOW": 30},
        max_age_seconds=86_400,
        begin=parse_instant("2026-11-20T21:40:11Z"),
        end=parse_instant("2026-11-21T09:12:40Z"),
    )
