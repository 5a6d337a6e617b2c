"""What the documents show works: every configuration is loaded, every link leads somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from relay.assembly import make_rules, make_sink
from relay.settings import load
from relay.settings.model import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SINKS = sorted((ROOT / "docs" / "sinks").glob("*.md"))
SOURCE = {"region": "eu", "username": "api-user@acme.example", "password": "secret"}
CONTENTS = {
    "url_file": "https://hooks.example/services/T0/B0/x",
    "secrets_file": "whsec_c2VjcmV0IG9mIHRoZSBkb2N1bWVudHM=",
    "Authorization_file": "Bearer token",
    "password_file": "secret",
}

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"([\w.]+_file): (/(?:run|etc/relay)/secrets/\w+)")


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _BLOCK.findall(page.read_text()) if name == language]


EXAMPLES = {
    f"{page.relative_to(ROOT)}-{number}": text for page in PAGES for number, text in enumerate(blocks(page, "yaml"), 1)
}


def loaded(text: str, folder: Path) -> Settings:
    """The settings of an example, its secrets in files, with a source if it names none."""
    for key, path in _FILE.findall(text):
        file = folder / Path(path).name
        file.write_text(CONTENTS[key.rpartition(".")[2]])
        text = text.replace(f"{key}: {path}", f"{key}: {file}")
    document = {"sources": {"acme": SOURCE}, **yaml.safe_load(text)}
    if any(sink["type"] == "kafka" for sink in document["sinks"].values()):
        document.setdefault("kafka", {"bootstrap.servers": "kafka.example:9092"})
    (folder / "relay.yaml").write_text(yaml.safe_dump(document))
    return load(folder / "relay.yaml", {}, folder)


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_every_configuration_in_the_documents_can_be_used_as_it_is(text: str, tmp_path: Path) -> None:
    settings = loaded(text, tmp_path)
    assert settings.warnings == ()
    assert make_rules(settings).keys() == {name for name, sink in settings.sinks.items() if sink.when is not None}
    for name in settings.sinks:
        make_sink(name, settings=settings, journal_id="docs")


def test_each_kind_of_sink_has_a_page_with_a_configuration() -> None:
    assert [page.stem for page in SINKS] == ["files", "kafka", "slack", "teams", "webhook"]
    shown = {
        kind
        for page in SINKS
        for text in blocks(page, "yaml")
        for kind in re.findall(r"^ +type: (\w+)$", text, re.MULTILINE)
    }
    assert shown == {"kafka", "webhook", "slack", "teams", "file", "stdout"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} leads to {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} leads to {link}"


def anchors(page: Path) -> set[str]:
    """As they are made of headings: lower case, without signs, a hyphen for a space."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
