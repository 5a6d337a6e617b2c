"""Asks a simulator in process, as a client with a token would over HTTP."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from relay.simulator import Answer, Request, Simulator

FORM = {"content-type": "application/x-www-form-urlencoded"}


def log_in(simulator: Simulator, username: str, password: str = "password", **headers: str) -> Answer:
    form = {"grant_type": "password", "username": username, "password": password}
    return simulator.handle(_login_request(form, headers))


def refresh(simulator: Simulator, refresh_token: str, **headers: str) -> Answer:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return simulator.handle(_login_request(form, headers))


def _login_request(form: Mapping[str, str], headers: Mapping[str, str]) -> Request:
    named = FORM | {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method="POST", path="/oauth/token", headers=named, body=urlencode(form).encode())


class Caller:
    """One logged-in account."""

    def __init__(self, simulator: Simulator, username: str, password: str = "password") -> None:
        self.simulator = simulator
        self.token: str = log_in(simulator, username, password).json()["access_token"]

    def ask(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes = b"",
        response_id: str = "",
    ) -> Answer:
        return self.simulator.handle(self.request(path, query, method=method, body=body, response_id=response_id))

    def request(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes = b"",
        response_id: str = "",
    ) -> Request:
        headers = {"authorization": f"Bearer {self.token}"}
        if response_id:
            headers["response-id"] = response_id
        return Request(method=method, path=path, query=query or {}, headers=headers, body=body)

    def page(self, where: str = "", order_by: str = "", *, page_size: int = 0, page_token: str = "") -> Answer:
        query = {"filter": where, "orderBy": order_by, "pageSize": str(page_size), "pageToken": page_token}
        return self.ask("/v2/incidents", {name: value for name, value in query.items() if value not in {"", "0"}})

    def uuids(self, where: str = "", order_by: str = "", *, page_size: int = 1000) -> list[str]:
        """Of the first page."""
        incidents: list[dict[str, Any]] = self.page(where, order_by, page_size=page_size).json()["incidents"]
        return [incident["uuid"] for incident in incidents]
