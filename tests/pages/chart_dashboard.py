"""The dashboard inside the chart: helm reads nothing outside of its folder, and GitOps tools drop links."""

from typing import Final

from tests.pages.chart import CHART, ROOT

PAGE: Final = CHART / "files" / "dashboard.json"


def render() -> str:
    """The one that everybody else loads."""
    return (ROOT / "deploy" / "grafana" / "relay.json").read_text(encoding="utf-8")
