"""The commands. Each says what it does in its first line; none holds logic of its own. Heavy imports wait until used.

Exit codes: 0 well, 1 the check or poll failed, 2 usage or configuration.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TypeVar

import typer

from relay import __version__
from relay.errors import ConfigError, RelayError

if TYPE_CHECKING:
    from rich.console import Console

    from relay.app import Relay
    from relay.control import Answer, AnyCommand
    from relay.eset.client import EsetClient
    from relay.eset.wire import DecodedPage
    from relay.settings import Settings
    from relay.simulator import Served

T = TypeVar("T")

app = typer.Typer(
    name="relay",
    help="Carries every new or changed ESET incident to Kafka and other sinks, exactly as often as it should.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
incidents = typer.Typer(help="Ask the API by hand.", no_args_is_help=True)
app.add_typer(incidents, name="incidents")
sources = typer.Typer(help="Look after the sources.", no_args_is_help=True)
app.add_typer(sources, name="sources")
sinks = typer.Typer(help="Look after the sinks.", no_args_is_help=True)
app.add_typer(sinks, name="sinks")
dead_letters = typer.Typer(help="See to what was refused for good.", no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters")
journal = typer.Typer(help="Move the journal.", no_args_is_help=True)
app.add_typer(journal, name="journal")
schema = typer.Typer(help="Print JSON Schemas, for editors and programs.", no_args_is_help=True)
app.add_typer(schema, name="schema")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The configuration file; else RELAY_CONFIG, else relay.yaml.", show_default=False
    ),
]
SourceOption = Annotated[str | None, typer.Option("--source", help="Which source; needed when there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
OfSinkOption = Annotated[str | None, typer.Option("--sink", help="Those of this sink.", show_default=False)]
OfSourceOption = Annotated[str | None, typer.Option("--source", help="Those of this source.", show_default=False)]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, or how they begin.", show_default=False)
]


def main() -> None:
    """Runs the command line; errors that we know become one message and an exit code."""
    hold_standard_descriptors()
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)
    except RelayError as error:
        _fail(str(error), 1)
    except ExceptionGroup as group:  # tasks of the daemon that can't go on
        ours, others = group.split(RelayError)
        if ours is None or others is not None:
            raise
        _fail(str(_first(ours)), 1)


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def hold_standard_descriptors() -> None:
    """Keeps the numbers 0 to 2: were one closed, the next file opened would get it, and events be written into that.

    What takes its place can't be written to, so a closed standard output still is one to the sink.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)


def _fail(message: str, code: int) -> NoReturn:
    from relay.terminal import error_line

    error_line(message)
    raise SystemExit(code)


def _settings(config: Path | None, *, quiet: bool = True) -> "Settings":
    """The settings; `quiet` commands answer on standard output and log only what went wrong."""
    from relay import logs
    from relay.settings import load

    settings = load(config, os.environ, Path.cwd())
    logs.configure("error" if quiet else settings.log.level, settings.log.format)
    for secret in settings.secrets():
        logs.protect(secret.reveal())
    return settings


@app.command()
def run(
    config: ConfigOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Poll each source once, finish the backfill, deliver all, and end.")
    ] = False,
) -> None:
    """Run the relay until SIGTERM, or once."""
    import structlog

    from relay.app import Relay

    settings = _settings(config, quiet=False)
    for warning in settings.warnings:
        structlog.get_logger().warning("configuration doubtful", problem=warning)
    if once:
        raise SystemExit(0 if asyncio.run(Relay(settings).run_once()) else 1)
    asyncio.run(_until_signalled(Relay(settings)))


async def _until_signalled(relay: "Relay") -> None:
    """The first signal asks for an orderly stop, the second leaves at once."""
    asked = False

    def on_signal() -> None:
        nonlocal asked
        if asked:
            os._exit(1)
        asked = True
        relay.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if not sys.stderr.isatty():
        await relay.run()
        return
    from relay import logs
    from relay.terminal import make_console, show_backfill

    log = relay.settings.log
    showing = asyncio.create_task(
        show_backfill(
            relay.facts, make_console(stderr=True), log_to=lambda stream: logs.configure(log.level, log.format, stream)
        ),
        name="show backfill",
    )
    try:
        await relay.run()
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


@app.command()
def check(
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Look at the configuration only.")] = False,
) -> None:
    """Try everything that the configuration names, a line each, with the cure where it failed."""
    from relay.check import check as try_everything
    from relay.terminal import make_console, print_check

    settings = _settings(config)
    lines = asyncio.run(try_everything(settings, offline=offline))
    raise SystemExit(print_check(lines, make_console()))


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Ask the running relay whether data flows, and what to do if not."""
    from relay.terminal import make_console, print_status

    document = _ask_running(_settings(config))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        print_status(document, make_console())


def _ask_running(settings: "Settings") -> dict[str, Any]:
    from relay.control import ask_running

    document = ask_running(settings.admin_socket_path, "GET", "/api/status")
    if document is None:
        path = settings.admin_socket_path
        _fail(f"no relay answers on {path}: start one with `relay run`, with the same configuration", 1)
    return document


@app.command()
def simulate(
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8089,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    scenario: Annotated[Path | None, typer.Option(help="A YAML file that says what happens when.")] = None,
    tenants: Annotated[int, typer.Option(min=1, max=100, help="How many tenants, without a scenario.")] = 1,
    count: Annotated[int, typer.Option("--incidents", min=0, help="Incidents a tenant, without a scenario.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed plays the same story.")] = 1,
) -> None:
    """Stand in for ESET Connect: log in with the printed user, poll, and inject faults under /control."""
    from relay.simulator import everyday_scenario, load_scenario
    from relay.simulator import run as simulate_run

    if scenario is not None:
        try:
            played = load_scenario(scenario)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{scenario}: {exc}") from exc
    else:
        names = [f"api@tenant{number}.example" for number in range(1, tenants + 1)]
        played = everyday_scenario(tenants=names, incidents=count, seed=seed)

    def on_ready(served: "Served", _simulator: object) -> None:
        typer.echo(f"base_url: {served.base_url}\ntoken_url: {served.token_url}")
        for tenant in played.tenants:
            typer.echo(f"username: {tenant.username}   password: {tenant.password}")

    try:
        _interruptible(simulate_run(played, host=host, port=port, on_ready=on_ready))
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host}, port {port}: {exc.strerror}; --port 0 takes a free one") from exc


def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    """Runs until it ends or is interrupted, which is the usual way to end it."""

    async def until_signalled() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(until_signalled())


@app.command()
def demo(
    kafka: Annotated[
        str | None,
        typer.Option(envvar="RELAY_TEST_KAFKA", help="Bootstrap servers of a broker to send through as well."),
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the journal, the events and the logs in this folder.")] = None,
) -> None:
    """Run simulator and relay together through a short story with faults, and count what arrived."""
    from relay.demo import demo as tell

    raise SystemExit(asyncio.run(tell(kafka=kafka, keep=keep)))


@incidents.command("list")
def list_incidents(
    config: ConfigOption = None,
    source: SourceOption = None,
    filter_text: Annotated[str, typer.Option("--filter", help="As the API takes it.")] = "",
    order_by: Annotated[str, typer.Option("--order-by", help="As the API takes it.")] = "update_time desc",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List incidents, one page."""
    from relay.eset.wire import decode_page
    from relay.terminal import make_console, print_incidents

    async def ask(client: "EsetClient") -> "DecodedPage":
        answer = await client.list_incidents(filter=filter_text, order_by=order_by, page_size=limit, decode=decode_page)
        return answer.content

    page = _with_client(_settings(config), source, ask)
    if as_json:
        for seen in page.observed:
            typer.echo(seen.raw)
    else:
        print_incidents(page.observed, make_console())


@incidents.command("get")
def get_incident(uuid: str, config: ConfigOption = None, source: SourceOption = None) -> None:
    """Print one incident with all its fields, as JSON."""
    found = _with_client(_settings(config), source, lambda client: client.get_incident(uuid))
    if found is None:
        _fail(f"there is no incident {uuid}: look it up with `relay incidents list`", 1)
    typer.echo(found.raw)


def _with_client(settings: "Settings", source: str | None, ask: "Callable[[EsetClient], Coroutine[Any, Any, T]]") -> T:
    from relay.assembly import Accounts, make_client
    from relay.clock import SystemClock
    from relay.metrics import Metrics

    async def asked() -> T:
        name = _one_source(settings, source)
        clock = SystemClock()
        metrics = Metrics(clock)
        accounts = Accounts(settings, metrics=metrics, clock=clock)
        client = make_client(name, settings.sources[name], accounts=accounts, metrics=metrics.source(name), clock=clock)
        try:
            return await ask(client)
        finally:
            await client.close()
            await accounts.close()

    return asyncio.run(asked())


def _one_source(settings: "Settings", name: str | None) -> str:
    known = ", ".join(settings.sources)
    if name is None and len(settings.sources) > 1:
        raise ConfigError(f"there are several sources: name one with --source ({known})")
    if name is not None and name not in settings.sources:
        raise ConfigError(f"there is no source {name}: use one of {known}")
    return name or next(iter(settings.sources))


@sources.command("accept-missing")
def accept_missing(label: str, config: ConfigOption = None) -> None:
    """Let the next sweep report any number of incidents as missing: they were deleted, and no right was lost."""
    from relay.control import AcceptMissing

    _say(_command(config, AcceptMissing(source=label)), as_json=False)


def _command(config: Path | None, command: "AnyCommand") -> "Answer":
    """Has the command executed, by the running relay or here."""
    from relay.clock import SystemClock
    from relay.control import ask

    return ask(_settings(config), command, clock=SystemClock())


def _say(answer: "Answer", *, as_json: bool) -> None:
    """The sentence for people; for scripts all of it."""
    typer.echo(json.dumps(answer, indent=2) if as_json else answer["done"])


def _show(answer: "Answer", draw: "Callable[[Answer, Console], None]", *, as_json: bool) -> None:
    from relay.terminal import make_console

    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        draw(answer, make_console())


@sources.command("list")
def list_sources(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the sources: how far each is read, and what is known of it."""
    from relay.control import ListSources
    from relay.terminal import print_sources

    _show(_command(config, ListSources()), print_sources, as_json=as_json)


@sources.command("rename")
def rename_source(old: str, new: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Keep ledger and progress under a new label: stop the relay, edit its configuration, run this, start it."""
    from relay.control import RenameSource

    _say(_command(config, RenameSource(old=old, new=new)), as_json=as_json)


@sinks.command("list")
def list_sinks(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the sinks: state, what waits, dead letters; removed ones as well while something is kept for them."""
    from relay.control import ListSinks
    from relay.terminal import print_sinks

    _show(_command(config, ListSinks()), print_sinks, as_json=as_json)


@sinks.command("enable")
def enable_sink(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a parked or disabled sink go on with the oldest waiting event."""
    from relay.control import EnableSink

    _say(_command(config, EnableSink(sink=name)), as_json=as_json)


@sinks.command("disable")
def disable_sink(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send nothing to a sink until it is enabled; its events wait, within `keep`."""
    from relay.control import DisableSink

    _say(_command(config, DisableSink(sink=name)), as_json=as_json)


@sinks.command("test")
def try_sink(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send one marked message to a sink that people read, or try what can be tried without an event."""
    from relay.control import TestSink

    _say(_command(config, TestSink(sink=name)), as_json=as_json)


@sinks.command("rename")
def rename_sink(old: str, new: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Keep all that waits under a new name: stop the relay, edit its configuration, run this, start it."""
    from relay.control import RenameSink

    _say(_command(config, RenameSink(old=old, new=new)), as_json=as_json)


@dead_letters.command("list")
def list_dead_letters(
    config: ConfigOption = None,
    sink: OfSinkOption = None,
    source: OfSourceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List what was refused for good, newest first: events by sinks, records of ESET that could not be read."""
    from relay.control import ListDeadLetters
    from relay.terminal import print_dead_letters

    command = ListDeadLetters(sink=sink, source=source, limit=limit)
    _show(_command(config, command), print_dead_letters, as_json=as_json)


@dead_letters.command("show")
def show_dead_letter(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Its id, or how it begins.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter: why it was refused, and the event or record itself."""
    from relay.control import ShowDeadLetter
    from relay.terminal import print_dead_letter

    _show(_command(config, ShowDeadLetter(id=id_)), print_dead_letter, as_json=as_json)


@dead_letters.command("redrive")
def redrive(
    ids: IdsArgument = None,
    config: ConfigOption = None,
    sink: OfSinkOption = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also those of which a newer version was sent already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters again: by id, or all of a sink."""
    from relay.control import Redrive

    _say(_command(config, Redrive(ids=tuple(ids or ()), sink=sink, superseded=superseded)), as_json=as_json)


@dead_letters.command("discard")
def discard(
    ids: IdsArgument = None,
    config: ConfigOption = None,
    sink: OfSinkOption = None,
    source: OfSourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget dead letters for good: by id, or all of a sink or source."""
    from relay.control import Discard

    _say(_command(config, Discard(ids=tuple(ids or ()), sink=sink, source=source)), as_json=as_json)


@app.command()
def replay(
    sink: Annotated[str, typer.Option("--sink", help="To which sink.")],
    since: Annotated[str, typer.Option("--since", help="A time, such as 2026-11-22T10:00:00Z, or how long ago: 2h.")],
    until: Annotated[str | None, typer.Option("--until", help="The same; else now.", show_default=False)] = None,
    incident: Annotated[
        str | None, typer.Option("--incident", metavar="UUID", help="Only this incident.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send again to one sink what the relay committed in that time, marked as a replay, with the same ids."""
    from relay.clock import SystemClock
    from relay.control import Replay, point_in_time

    now = SystemClock().now()
    end = None if until is None else point_in_time(until, now)
    command = Replay(sink=sink, since=point_in_time(since, now), until=end, incident=incident)
    _say(_command(config, command), as_json=as_json)


@app.command()
def backup(
    file: Annotated[str, typer.Argument(help="Where to; `-` is standard output.")], config: ConfigOption = None
) -> None:
    """Copy the journal into a file, while the relay runs or not. The copy can be started as it is."""
    from relay.clock import SystemClock
    from relay.control import backup as copy

    settings = _settings(config)
    if file == "-":
        if sys.stdout.isatty():
            raise ConfigError("a backup is no text: send it into a file, such as relay backup - > relay.db")
        copy(settings, sys.stdout.buffer.write, clock=SystemClock())
        sys.stdout.buffer.flush()
        return
    with _whole_file(Path(file)) as stream:
        size = copy(settings, stream.write, clock=SystemClock())
    typer.echo(f"{file} holds the journal as it was a moment ago, {size / (1 << 20):,.1f} MiB")


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name once all of it is on the disk. Raises ConfigError, RelayError."""
    if path.exists():
        raise ConfigError(f"{path} exists: name another file, or remove it first")
    part = path.with_name(f"{path.name}.part")
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be made: {(exc.strerror or '').lower()}; name another file") from exc
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        part.rename(path)
    except OSError as exc:
        raise RelayError(f"{path} could not be written: {(exc.strerror or '').lower()}; make room there") from exc
    finally:
        part.unlink(missing_ok=True)


@journal.command("copy")
def copy_journal(
    origin: Annotated[Path, typer.Option("--from", help="The configuration of the journal that there is.")],
    target: Annotated[Path, typer.Option("--to", help="The configuration of the journal that is made of it.")],
) -> None:
    """Carry everything over from SQLite to Kafka, or back, so that nothing is sent again. No relay may run."""
    from relay.clock import SystemClock
    from relay.copying import copy_journal as copy
    from relay.terminal import make_console, showing_copy

    one, other = _settings(origin), _settings(target)
    with showing_copy(make_console(stderr=True)) as tell:
        said = asyncio.run(copy(one, other, clock=SystemClock(), tell=tell))
    typer.echo(said)


@schema.command("config")
def show_config_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    from relay.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))


@schema.command("event")
def show_event_schema() -> None:
    """Print the JSON Schema of an event, as sinks send it."""
    from relay.schema import event_schema

    typer.echo(json.dumps(event_schema(), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
