"""The alerts inside the chart: helm reads nothing outside of its folder, and GitOps tools drop links."""

from typing import Final

from tests.pages.chart import CHART, ROOT

PAGE: Final = CHART / "files" / "alerts.yaml"


def render() -> str:
    """Those that everybody else loads."""
    return (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
