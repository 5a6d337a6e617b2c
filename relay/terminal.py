"""What commands print for people: status, check, the summary of the demo, incidents. Knows no task and no socket.

Only the 16 colours of the user's theme. Without colour shape and word remain, without UTF-8 the word alone.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from relay.clock import SECOND, Instant, SystemClock
from relay.errors import JournalError
from relay.incidents import DIGEST_VERSION, TRACKED, Observed, parse_instant, severity_name
from relay.status import CheckLine, RelayFacts, document
from relay.words import count, inert, moment, number, size, span

WIDE: Final = 120
"""From this width on every column is shown."""
FILLING_RATIO: Final = 0.75
NEARLY_FULL_RATIO: Final = 0.9
BACKFILL_SECONDS: Final = 0.5
"""How often the bars of a backfill move."""
COPY_SECONDS: Final = 5.0
"""How often a line says how far a copy is, where no bar can."""
MAX_BARS: Final = 8
"""More sources than that would push the log off the screen; `relay status` shows all."""
SHORT_ID: Final = 12
"""Characters of an id where it stands in a column: enough for every command that takes one."""
MAX_CELL: Final = 24
"""Values from outside are cut to so many cells, where they stand in a column."""

OK, WAIT, ACT, SOFT, COMMAND, MARK, NAME = "green", "yellow", "bold red", "dim", "cyan", "blue", "bold"

_LOOKS: Final[Mapping[str, tuple[str, str]]] = {
    "ok": ("●", OK),
    "flowing": ("●", OK),
    "starting": ("○", SOFT),
    "disabled": ("○", SOFT),
    "throttled": ("‖", WAIT),
    "paused": ("‖", WAIT),
    "failing": ("▲", WAIT),
    "late": ("▲", WAIT),
    "parked": ("■", ACT),
    "stopped": ("■", ACT),
    "refused": ("■", ACT),
    "suspended": ("■", ACT),
    "blocked": ("■", ACT),
    "failed": ("■", ACT),
    "dead": ("×", ACT),
    "removed": ("○", SOFT),
}
_UNKNOWN_LOOK: Final = ("▲", WAIT)
_SINCE: Final = {"flowing": "No problem since", "late": "Late since", "blocked": "Needs a person since"}
_OUTCOMES: Final = {"ok": OK, "warn": WAIT, "fail": ACT, "skip": SOFT}

Document = Mapping[str, Any]
Align = Literal["left", "right"]
Column = tuple[str, Align]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFault:
    """What was done to the relay, when, and what it did."""

    at_seconds: float
    fault: str
    reaction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSink:
    """What one far side counted. `note` may be cut at a `, ` or `: ` where space is short."""

    name: str
    owed: int
    arrived: int
    missing: int
    repeats: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """How a demo ended. `facts` are pairs such as ("lag", "half of the live changes within 1.1 s")."""

    seconds: float
    faults: Sequence[DemoFault]
    sinks: Sequence[DemoSink]
    facts: Sequence[tuple[str, str]]
    guarantees_held: int
    guarantees: int
    next_step: str = "To run it against ESET:"
    commands: Sequence[str] = ("relay check", "relay run")

    @property
    def ok(self) -> bool:
        """Whether every guarantee held and nothing is missing."""
        return self.guarantees_held == self.guarantees and not self.missing

    @property
    def missing(self) -> int:
        """Events that a sink was owed and never got."""
        return sum(sink.missing for sink in self.sinks)


def make_console(*, stderr: bool = False) -> Console:
    """The terminal, or what stands in for it. NO_COLOR and pipes are heeded, nothing is coloured by guess."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_status(status: Document, console: Console) -> None:
    """The whole status: verdict, what is wrong and its cure, then figures."""
    page = _Page(console, now=parse_instant(status["generated_time"]))
    page.verdict(status["verdict"])
    for problem in status["verdict"]["problems"]:
        page.blank()
        page.problem(problem)
    page.blank()
    page.sources(status)
    page.blank()
    page.sinks(status)
    page.blank()
    page.foot(status)


def print_check(lines: Sequence[CheckLine], console: Console) -> int:
    """One block a thing tried, and a summary. Returns the exit code: 1 when anything failed."""
    page = _Page(console, now=0)
    names = max((len(line.name) for line in lines), default=0)
    for line in lines:
        page.check_line(line, indent=7 + names + 3)
    failed = [line.name for line in lines if line.outcome == "fail"]
    warnings = sum(line.outcome == "warn" for line in lines)
    page.blank()
    said = Text()
    if failed:
        said.append(f"{len(failed)} of {count(len(lines), 'check')} failed", ACT).append(f": {', '.join(failed)}.")
    else:
        said.append(f"None of {count(len(lines), 'check')} failed", OK).append(".")
    said.append(f" {count(warnings, 'warning')}." if warnings else "")
    page.paragraph(said.append(f" Exit code {1 if failed else 0}."))
    return 1 if failed else 0


def print_demo_summary(summary: DemoSummary, console: Console) -> int:
    """What was done to the relay and what arrived. Returns the exit code."""
    page = _Page(console, now=0)
    page.demo(summary)
    return 0 if summary.ok else 1


def print_incidents(incidents: Iterable[Observed], console: Console, *, now: Instant | None = None) -> None:
    """A line an incident (more where the terminal is narrow), in the order given."""
    page = _Page(console, now=SystemClock().now() if now is None else now)
    page.incidents(list(incidents))


def print_sinks(answer: Document, console: Console) -> None:
    """`relay sinks list`: the table of the status, and sinks that left the configuration."""
    page = _Page(console, now=parse_instant(answer["generated_time"]))
    page.sink_list(answer)


def print_sources(answer: Document, console: Console) -> None:
    """`relay sources list`: how far each source is read, and what is known of it."""
    page = _Page(console, now=parse_instant(answer["generated_time"]))
    page.source_list(answer)


def print_dead_letters(answer: Document, console: Console) -> None:
    """`relay dead-letters list`: newest first, and what to do with them."""
    page = _Page(console, now=parse_instant(answer["generated_time"]))
    page.dead_letters(answer)


def print_dead_letter(answer: Document, console: Console) -> None:
    """`relay dead-letters show`: why it was refused, what to do, and the event or record itself."""
    page = _Page(console, now=parse_instant(answer["generated_time"]))
    for index, letter in enumerate(answer["dead_letters"]):
        if index:
            page.blank()
        page.dead_letter(letter)


def error_line(message: str) -> None:
    """Prints what ended the command on standard error: what is wrong and where, line by line."""
    page = _Page(make_console(stderr=True), now=0)
    lines = [inert(line) for line in message.splitlines()]
    page.line(Text.assemble(("error  ", ACT), "\n       ".join(lines)))


async def show_backfill(
    facts: Callable[[], Awaitable[RelayFacts]],
    console: Console,
    *,
    log_to: Callable[[TextIO], None],
    every_seconds: float = BACKFILL_SECONDS,
) -> None:
    """A bar for each source whose past is being read, below the log; gone, and done, once all of it is read.

    `log_to` is told where log lines go meanwhile, so that they appear above the bars, and where they go afterwards.
    """
    name, said = TextColumn("[dim]backfill[/]  {task.description}"), TextColumn("{task.fields[said]}")
    before = sys.stderr
    with Progress(name, BarColumn(20, MARK, MARK), said, console=console, transient=True) as progress:
        log_to(sys.stderr)
        try:
            bars: dict[str, TaskID] = {}
            while True:
                with suppress(JournalError):
                    known = await facts()
                    for source in document(known)["sources"][:MAX_BARS]:
                        _advance(progress, bars, source, now=known.now)
                    waiting = any(one.state == "starting" or one.backfill == "running" for one in known.sources)
                    if known.sources and not waiting:
                        return
                await asyncio.sleep(every_seconds)
        finally:
            log_to(before)


@contextmanager
def showing_copy(console: Console, *, every_seconds: float = COPY_SECONDS) -> Iterator[Callable[[str, int, int], None]]:
    """What is told of a copy: one bar, gone at the end; where no terminal is, a line now and then."""
    if console.is_terminal:
        name, said = TextColumn("[dim]{task.description}[/]"), TextColumn("{task.fields[said]}")
        with Progress(name, BarColumn(20, MARK, MARK), said, console=console, transient=True) as progress:
            bar = progress.add_task("", total=None, said="")
            yield lambda doing, done, of: progress.update(
                bar, description=doing, completed=done, total=max(of, 1), said=_done(done, of)
            )
        return
    last = time.monotonic()

    def tell(doing: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            console.print(f"{doing}: {_done(done, of)}")

    yield tell


def _done(done: int, of: int) -> str:
    return f"{number(done)} of {number(of)}"


def _advance(progress: Progress, bars: dict[str, TaskID], source: Document, *, now: Instant) -> None:
    label, backfill = source["label"], source["backfill"]
    if backfill["state"] != "running":
        if label in bars:
            progress.remove_task(bars.pop(label))
        return
    if label not in bars:
        bars[label] = progress.add_task(f"[bold]{label}[/]", total=None, said="")
    ratio, up_to = backfill["progress_ratio"], backfill["up_to_time"]
    said = f"{int(ratio * 100)} %, " if ratio is not None else ""
    said += f"read up to {moment(parse_instant(up_to), now)}" if up_to else "begun"
    total = None if ratio is None else 1.0
    progress.update(bars[label], total=total, completed=ratio or 0.0, said=said)


class _Page:
    """Writes lines to a console, in the form that its width and encoding allow."""

    def __init__(self, console: Console, *, now: Instant) -> None:
        self._console = console
        self._now = now
        self._width = console.width
        self._wide = console.width >= WIDE
        self._encoding = console.encoding
        self._shapes = self._encoding.lower().replace("_", "-").startswith("utf")

    # -- lines --------------------------------------------------------------------------------------------------------

    def line(self, text: Text) -> None:
        """One line as it is; characters that the terminal cannot show become question marks."""
        text.rstrip()
        if not self._shapes:
            text.plain = text.plain.encode(self._encoding, "replace").decode(self._encoding)
        self._console.print(text, soft_wrap=True, highlight=False)

    def blank(self) -> None:
        """An empty line."""
        self.line(Text())

    def paragraph(self, text: Text, *, first: Text | None = None, indent: int = 0) -> None:
        """Wrapped text; `first` stands before its first line, the others are indented as far."""
        wrapped = text.wrap(self._console, max(20, self._width - indent))
        for index, part in enumerate(wrapped or [Text()]):
            lead = first if first is not None and index == 0 else Text(" " * indent)
            self.line(Text.assemble(lead, part))

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Text]], *, indent: int = 0, gap: int = 2
    ) -> None:
        """Columns under their heads; the last one is wrapped where it does not fit."""
        heads = [Text(name, style=SOFT) for name, _ in columns]
        widths = _widths([heads, *rows])
        start = indent + sum(width + gap for width in widths[:-1])
        for row in (heads, *rows):
            lead = Text(" " * indent)
            for cell, (_, align), width in zip(row[:-1], columns, widths, strict=False):
                lead.append_text(_padded(cell, width, align)).append(" " * gap)
            last = row[-1] if columns[-1][1] == "left" else _padded(row[-1], widths[-1], "right")
            self.paragraph(last, first=lead, indent=start)

    def _marked(self, state: str, word: str) -> Text:
        shape, style = _LOOKS.get(state, _UNKNOWN_LOOK)
        return Text(f"{shape} {word}" if self._shapes else word, style=style)

    def _bar(self, ratio: float, cells: int, style: str) -> Text:
        full = max(0, min(cells, round(ratio * cells)))
        return Text.assemble(("█" * full, style), ("░" * (cells - full), SOFT)) if self._shapes else Text()

    # -- times --------------------------------------------------------------------------------------------------------

    def _moment(self, time: str) -> str:
        return moment(parse_instant(time), self._now)

    def _when(self, time: str | None) -> Text:
        return self._nothing() if time is None else Text(self._moment(time))

    def _ago(self, time: str | None, *, units: int = 2) -> Text:
        if time is None:
            return self._nothing()
        seconds = (self._now - parse_instant(time)) / SECOND
        return Text(f"{span(seconds, units=units if self._wide else 1)} ago")

    def _nothing(self) -> Text:
        return Text("–" if self._shapes else "-", style=SOFT)

    # -- status -------------------------------------------------------------------------------------------------------

    def verdict(self, verdict: Document) -> None:
        """The one sentence, and since when it is so."""
        shape, style = _LOOKS.get(verdict["state"], _UNKNOWN_LOOK)
        first = Text(f"{shape} ", style=style) if self._shapes else Text()
        self.paragraph(Text(inert(verdict["headline"]), style=NAME), first=first, indent=first.cell_len)
        said = f"{_SINCE.get(verdict['state'], 'Since')} {self._moment(verdict['since_time'])}."
        self.paragraph(Text(said, style=SOFT), indent=first.cell_len)

    def problem(self, problem: Document) -> None:
        """What happened, what it means for the data, what to do."""
        state = "dead letters" if problem["state"] == "dead" else inert(problem["state"])
        head = self._marked(problem["state"], f"{inert(problem['name'])} {state}")
        self.line(Text.assemble(head, (f" since {self._moment(problem['since_time'])}", SOFT)))
        said = Text(inert(problem["text"])).append(f" {inert(problem['effect'])}", SOFT)
        for text in (said, Text(inert(problem["cure"]["text"]))):
            self.paragraph(text, indent=2)
        if problem["cure"]["command"]:
            self.line(Text(f"    {inert(problem['cure']['command'])}", style=COMMAND))

    def sources(self, status: Document) -> None:
        """The table of sources, and how many it leaves out."""
        late = status["lag"]["late_above_seconds"]
        rows = [self._source(source, late) for source in status["sources"]]
        names = ("source", "state", "read mode", "last poll", "complete up to", "lag", "backfill", "ledger")
        self._figures(names, rows, right={"lag", "ledger"}, wide_only={"read mode", "last poll", "ledger"})
        self._left_out(status["source_counts"]["total"] - len(rows), "source")
        for source in status["sources"]:
            if note := source.get("read_note"):
                self.paragraph(Text(inert(note), style=SOFT))

    def sinks(self, status: Document) -> None:
        """The table of sinks, and how many it leaves out."""
        rows = [self._sink(sink) for sink in status["sinks"]]
        names = ("sink", "state", "waiting", "oldest", "last success", "delivered, 1 h", "dead")
        few = {"delivered, 1 h", "dead"}
        self._figures(names, rows, right={"waiting", *few}, wide_only=few)
        self._left_out(status["sink_counts"]["total"] - len(rows), "sink")

    def foot(self, status: Document) -> None:
        """Space, dead letters, and the relay itself."""
        self.line(self._journal(status["journal"]))
        dead = status["dead_letters"]
        if dead["total"]:
            # A relay that can list them shows some of them in its document.
            command = ("   ", ("relay dead-letters list", COMMAND)) if dead["items"] else ()
            self.line(Text.assemble(("dead    ", SOFT), count(dead["total"], "event"), *command))
        relay = status["relay"]
        version = f"{relay['version']}, up {span(relay['uptime_seconds'])}"
        as_of = f"   as of {moment(self._now, self._now)}, all times UTC"
        self.line(Text.assemble(("relay   ", SOFT), version, (as_of, SOFT)))

    def _figures(
        self, names: Sequence[str], rows: Sequence[Sequence[Text]], *, right: set[str], wide_only: set[str]
    ) -> None:
        """A table with all its columns where they fit."""
        shown = [index for index, name in enumerate(names) if self._wide or name not in wide_only]
        columns: list[Column] = [(names[index], "right" if names[index] in right else "left") for index in shown]
        self.table(columns, [[row[index] for index in shown] for row in rows])

    def _left_out(self, rows: int, noun: str) -> None:
        if rows > 0:
            self.line(Text(f"{count(rows, f'more {noun}')} not shown", style=SOFT))

    def _source(self, source: Document, late_seconds: float) -> list[Text]:
        modes = list(dict.fromkeys(source["read_modes"].values()))
        poll = source["last_poll"]
        lag = source["lag_seconds"]
        return [
            _named(source["label"], source["region"]),
            self._state(source, source["throttled_until_time"]),
            Text(" / ".join(modes)),
            self._ago(poll["finished_time"] if poll else source["last_successful_poll_time"], units=1),
            self._when(source["complete_up_to_time"]),
            self._nothing()
            if lag is None
            else Text(span(lag, units=2 if self._wide else 1), style=WAIT if lag > late_seconds else ""),
            self._backfill(source["backfill"]),
            _amount(source["ledger_incidents"]),
        ]

    def _sink(self, sink: Document) -> list[Text]:
        delivered = sink["delivered_last_hour_events"]
        return [
            _named(sink["name"], sink["type"]),
            self._state(sink, sink["paused_until_time"]),
            _amount(sink["backlog_events"]),
            self._ago(sink["oldest_waiting_time"]),
            self._ago(sink["last_success_time"]),
            self._nothing() if delivered is None else _amount(delivered),
            self._dead(sink["dead_letters"]),
        ]

    def _state(self, one: Document, until: str | None) -> Text:
        """Until when where the far side gave a time, else since when, unless all is well."""
        state = one["state"]
        marked = self._marked(state, state)
        if state == "ok":
            return marked
        if state in ("throttled", "paused") and until:
            return Text.assemble(marked, f" until {self._moment(until)}")
        return Text.assemble(marked, f"{' since' if self._wide else ''} {self._moment(one['state_since_time'])}")

    def _backfill(self, backfill: Document) -> Text:
        if backfill["state"] == "running":
            return self._running(backfill)
        if backfill["state"] == "done":
            finished = backfill["finished_time"]
            return Text(f"done {self._moment(finished)}" if self._wide and finished else "done", style=SOFT)
        return Text("not wanted", style=SOFT)

    def _running(self, backfill: Document) -> Text:
        ratio, end, up_to = (backfill[key] for key in ("progress_ratio", "estimated_finish_time", "up_to_time"))
        if ratio is None:
            return Text(f"up to {self._moment(up_to)}" if self._wide and up_to else "running", style=MARK)
        percent = f"{int(ratio * 100)} %"
        if not self._wide:
            return Text(percent, style=MARK)
        bar = self._bar(ratio, 5, MARK)
        shown = f"{' ' if bar else ''}{percent}"
        return Text.assemble(bar, f"{shown}, to {_without_seconds(self._moment(end))}" if end else shown)

    def _journal(self, journal: Document) -> Text:
        used, limit, ratio = (journal[key] for key in ("used_bytes", "limit_bytes", "fill_ratio"))
        if used is None or limit is None or ratio is None:
            return Text.assemble(("journal ", SOFT), f"in {journal['kind']}")
        style = ACT if ratio >= NEARLY_FULL_RATIO else WAIT if ratio >= FILLING_RATIO else MARK
        bar = self._bar(ratio, 10, style)
        figures = f"{' ' if bar else ''}{size(used, limit)}, {int(ratio * 100)} %"
        return Text.assemble(("journal ", SOFT), bar, figures, (f"   {self._room(journal)}", SOFT))

    def _room(self, journal: Document) -> str:
        if journal["polling_stopped"]:
            return f"polling stopped at {self._moment(journal['polling_stopped']['since_time'])}"
        growth = journal["growth_bytes_per_day"] or 0
        left = journal["limit_bytes"] * NEARLY_FULL_RATIO - journal["used_bytes"]
        days = int(max(0.0, left) / growth) if growth > 0 else None
        if days is None or days >= 365:
            return "polling stops at 90 %"
        return f"polling stops {'at 90 %, ' if self._wide else ''}in about {count(days, 'day')}"

    # -- lists --------------------------------------------------------------------------------------------------------

    def sink_list(self, answer: Document) -> None:
        """As in the status; a removed sink has no type."""
        rows = [self._sink(sink) for sink in answer["sinks"]]
        names = ("sink", "state", "waiting", "oldest", "last success", "delivered, 1 h", "dead")
        few = {"last success", "delivered, 1 h"}
        self._figures(names, rows, right={"waiting", "delivered, 1 h", "dead"}, wide_only=few)
        self._list_foot(answer)

    def source_list(self, answer: Document) -> None:
        """One line a source."""
        names = ("source", "state", "complete up to", "lag", "backfill", "ledger", "dead")
        rows = [self._listed_source(source) for source in answer["sources"]]
        self._figures(names, rows, right={"lag", "ledger", "dead"}, wide_only={"backfill"})
        self._list_foot(answer)

    def _listed_source(self, source: Document) -> list[Text]:
        state, lag, until = source["state"], source["lag_seconds"], source["throttled_until_time"]
        shown = self._nothing() if state is None else self._marked(state, state)
        if state == "throttled" and until:
            shown = Text.assemble(shown, f" until {self._moment(until)}")
        return [
            _named(source["label"], source["region"]),
            shown,
            self._when(source["complete_up_to_time"]),
            self._nothing() if lag is None else Text(span(lag, units=2 if self._wide else 1)),
            Text(source["backfill"].replace("_", " "), style=MARK if source["backfill"] == "running" else SOFT),
            _amount(source["ledger_incidents"]),
            self._dead(source["dead_letters"]),
        ]

    def _dead(self, letters: int) -> Text:
        return Text(number(letters), style=ACT) if letters else _amount(0)

    def _list_foot(self, answer: Document) -> None:
        as_of = f"as of {moment(self._now, self._now)}, all times UTC"
        self.line(Text(as_of if answer["relay_running"] else f"{as_of}; no relay runs at present", style=SOFT))

    # -- dead letters -------------------------------------------------------------------------------------------------

    def dead_letters(self, answer: Document) -> None:
        """A line each, the reason wrapped; where there is no room, the incident's name goes."""
        letters = answer["dead_letters"]
        if not letters:
            self.line(Text("There is no dead letter.", style=SOFT))
            return
        names = ("id", "of", "since", "severity", "attempts", "incident", "reason")
        rows = [self._listed_letter(letter) for letter in letters]
        self._figures(names, rows, right={"attempts"}, wide_only={"severity", "attempts", "incident"})
        self._left_out(answer["total"] - len(letters), "dead letter")
        components = {letter["component"] for letter in letters}
        hints = [("To see one whole:", "show ID")]
        hints += [("To send one again:", "redrive ID")] if "sink" in components else []
        hints += [("To forget one:", "discard ID")] if "source" in components else []
        for said, command in hints:
            self.line(Text.assemble((f"{said} ", SOFT), (f"relay dead-letters {command}", COMMAND)))

    def _listed_letter(self, letter: Document) -> list[Text]:
        title = letter["title"] or letter["incident_uuid"]
        return [
            Text(inert(letter["id"])[:SHORT_ID], style=NAME),
            Text(inert(letter["name"])),
            Text(self._moment(letter["time"])),
            Text(_cut(inert(letter["severity"]))),
            _amount(letter["attempts"]),
            Text(_cut(inert(title))) if title else self._nothing(),
            Text(inert(letter["text"])),
        ]

    def dead_letter(self, letter: Document) -> None:
        """Reason and cure, then what was refused, so that it can't do anything to the terminal."""
        head = self._marked("dead", f"{inert(letter['id'])} of {inert(letter['name'])}")
        self.line(Text.assemble(head, (f" since {self._moment(letter['time'])}", SOFT)))
        self.paragraph(Text(inert(letter["text"])), indent=2)
        if letter["event"] is not None:
            about = f"{inert(letter['kind'])}, version {number(letter['sequence'])} of incident "
            about += f"{inert(letter['incident_uuid'])} of {inert(letter['source'])}; "
            self.paragraph(Text(f"{about}{count(letter['attempts'], 'attempt')}", style=SOFT), indent=2)
            shown = json.dumps(letter["event"], indent=2, ensure_ascii=False)
        else:
            self.paragraph(Text("a record of ESET that could not be read, as it came", style=SOFT), indent=2)
            shown = letter["record"]
        self.paragraph(Text(inert(letter["cure"]["text"])), indent=2)
        self.line(Text(f"    {inert(letter['cure']['command'])}", style=COMMAND))
        self.blank()
        for line in shown.split("\n"):
            self.line(Text(inert(line)))

    # -- check --------------------------------------------------------------------------------------------------------

    def check_line(self, line: CheckLine, *, indent: int) -> None:
        """Outcome, name and what was found; below it the cure."""
        name = inert(line.name).ljust(indent - 7)
        first = Text.assemble((f"{line.outcome:<7}", _OUTCOMES[line.outcome]), (name, NAME))
        self.paragraph(Text(inert(line.text)), first=first, indent=indent)
        if line.cure:
            self.paragraph(Text(inert(line.cure), style=SOFT), indent=indent)
        if line.command:
            self.line(Text(f"{' ' * indent}  {inert(line.command)}", style=COMMAND))

    # -- demo ---------------------------------------------------------------------------------------------------------

    def demo(self, summary: DemoSummary) -> None:
        """The story in the order in which it is asked about: done to it, arrived, held."""
        lost = "Nothing was lost." if not summary.missing else f"{count(summary.missing, 'event')} did not arrive."
        self.paragraph(Text(f"The demo ended after {span(summary.seconds)}. {lost}", style=NAME))
        self.blank()
        self.line(Text("What was done to it", style=SOFT))
        self._faults(summary.faults)
        self.blank()
        self.line(Text("What arrived, counted at the far side", style=SOFT))
        self._arrived(summary.sinks)
        self.blank()
        self._facts(summary.facts)
        self.blank()
        self._closing(summary)

    @property
    def _gap(self) -> int:
        return 3 if self._wide else 2

    def _faults(self, faults: Sequence[DemoFault]) -> None:
        rows = [
            [Text(f"{int(one.at_seconds)} s", style=SOFT), Text(inert(one.fault)), Text(inert(one.reaction))]
            for one in faults
        ]
        columns: list[Column] = [("at", "right"), ("fault", "left"), ("what the relay did", "left")]
        self.table(columns, rows, indent=2, gap=self._gap)

    def _arrived(self, sinks: Sequence[DemoSink]) -> None:
        heads = ("sink", "owed", "arrived", "missing", "repeats")
        rows = [self._arrivals(sink) for sink in sinks]
        widths = _widths([[Text(head) for head in heads], *rows])
        room = self._width - 2 - sum(widths) - self._gap * len(heads)
        rows = [[*row, Text(_shortened(sink.note, room), style=SOFT)] for row, sink in zip(rows, sinks, strict=True)]
        columns: list[Column] = [(head, "left" if head == "sink" else "right") for head in heads]
        self.table([*columns, ("", "left")], rows, indent=2, gap=self._gap)

    def _arrivals(self, sink: DemoSink) -> list[Text]:
        return [
            Text(inert(sink.name), style=NAME),
            Text(number(sink.owed)),
            Text(number(sink.arrived)),
            Text(number(sink.missing), style=ACT if sink.missing else OK),
            Text(number(sink.repeats)),
        ]

    def _facts(self, facts: Sequence[tuple[str, str]]) -> None:
        widest = max((len(name) for name, _ in facts), default=0)
        for name, text in facts:
            first = Text(f"  {name.ljust(widest)}   ", style=SOFT)
            self.paragraph(Text(inert(text)), first=first, indent=widest + 5)

    def _closing(self, summary: DemoSummary) -> None:
        word = "ok" if summary.ok else "failed"
        held = f"{summary.guarantees_held} of {summary.guarantees} guarantees held."
        self.paragraph(Text.assemble(self._marked(word, word), f"  {held} Exit code {0 if summary.ok else 1}."))
        if summary.commands:
            commands = Text(", then ", style=SOFT).join(Text(command, style=COMMAND) for command in summary.commands)
            self.paragraph(Text.assemble((f"{summary.next_step} ", SOFT), commands))

    # -- incidents ----------------------------------------------------------------------------------------------------

    def incidents(self, incidents: Sequence[Observed]) -> None:
        """Time, severity, status, uuid, name; the uuid goes below the name where they do not fit side by side."""
        if not incidents:
            self.line(Text("No incident matches.", style=SOFT))
            return
        names = (
            ("updated", "severity", "status", "uuid", "name")
            if self._wide
            else ("updated", "severity", "status", "name")
        )
        self.table([(name, "left") for name in names], [self._incident(incident) for incident in incidents])

    def _incident(self, incident: Observed) -> list[Text]:
        fields = dict(zip(TRACKED[DIGEST_VERSION], incident.values, strict=True))
        status = str(fields["status"]).removeprefix("INCIDENT_STATUS_")
        name, uuid = Text(inert(str(fields["displayName"]))), Text(inert(incident.uuid), style=SOFT)
        return [
            Text(moment(incident.updated, self._now)),
            Text(_cut(inert(severity_name(str(fields["severity"]))))),
            Text(_cut(inert(status))),
            *([uuid, name] if self._wide else [Text("\n").join([name, uuid])]),
        ]


def _widths(rows: Sequence[Sequence[Text]]) -> list[int]:
    return [max(cell.cell_len for cell in column) for column in zip(*rows, strict=False)]


def _padded(cell: Text, width: int, align: Align) -> Text:
    padding = " " * (width - cell.cell_len)
    return Text.assemble(cell, padding) if align == "left" else Text.assemble(padding, cell)


def _named(name: str, kind: str | None) -> Text:
    return Text.assemble((inert(name), NAME), (f" {inert(kind)}" if kind else "", SOFT))


def _amount(value: int) -> Text:
    return Text(number(value), style="" if value else SOFT)


def _without_seconds(shown: str) -> str:
    """`11:02:00` as `11:02`: an estimate is not that exact."""
    return shown[:-3] if shown.count(":") == 2 else shown


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def _shortened(note: str, cells: int) -> str:
    """The note up to the last clause that fits."""
    note = inert(note)
    while len(note) > cells:
        end = max(note.rfind(", "), note.rfind(": "))
        if end < 0:
            return note
        note = note[:end]
    return note
