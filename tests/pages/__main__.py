"""Writes the pages that are made from the code: `python -m tests.pages`."""

from tests.pages import pages

for page in pages():
    page.PAGE.write_text(page.render(), encoding="utf-8")
    print(page.PAGE.name)  # noqa: T201 - a command
