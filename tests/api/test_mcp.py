"""MCP with the official client, over standard input and output and over HTTP."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver.exceptions import ToolError
from starlette.testclient import TestClient

from flows.api.mcp import MAX_BODY_BYTES, mcp_server
from flows.api.request_bodies import MAX_VALUES, NOT_JSON
from flows.service.observer import observe
from flows.service.pool import Backend
from storage.records import item_id
from tests.support.apis import a_caller, a_key, an_application, taken_in
from tests.support.processes import wait_until

ROOT = Path(__file__).parents[2]
ROSE = {"key": "rose", "texts": ["red rose"], "metadata": {"kind": "flower"}}
LEAF = {"key": "leaf", "texts": ["green leaf"]}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """The address of a real server."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(an_application(backend), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started, patience_s=60)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


async def asked(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content
    return found


def test_an_assistant_elsewhere_searches_and_looks_with_a_key(backend: Backend):
    with a_caller(backend, "admin") as caller:
        taken_in(backend, caller, ROSE, LEAF)

    async def talk(url: str) -> None:
        http = httpx2.AsyncClient(headers=a_key(backend, "read"), timeout=60)
        async with http, Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert tools.keys() == {"search", "get", "status"}
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())

            found = await asked(client, "search", text="red", find="texts", where={"kind": "flower"})
            assert [hit["key"] for hit in found["hits"]] == ["rose"]
            shown = await asked(client, "get", id=found["hits"][0]["id"])
            assert shown["texts"][0]["text"] == "red rose"
            assert (await asked(client, "status"))["records"]["searchable"] == 2

            missing = await client.call_tool("get", {"id": str(item_id("shop", "none"))})
            assert missing.is_error
            assert "there is no record" in str(missing.content)

    with served(backend) as url:
        asyncio.run(talk(url))


@pytest.mark.parametrize("scopes", [(), ("write",)])
def test_nobody_gets_in_without_the_scope_to_read(backend: Backend, scopes: tuple[Any, ...]):
    headers = ACCEPT | (a_key(backend, *scopes) if scopes else {})
    with TestClient(an_application(backend)) as client:
        answer = client.post("/mcp", json=INITIALIZE, headers=headers)

    assert answer.status_code == (403 if scopes else 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


def a_call(arguments: str) -> str:
    return f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {{{arguments}}}}}'


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (a_call('"name": "search", "arguments": {"text": "red", "min_score": NaN}'), 422, NOT_JSON),
        (a_call('"name": "status", "_meta": {"any": [-Infinity]}'), 422, NOT_JSON),
        (a_call(f'"name": "search", "arguments": {{"text": "{"x" * MAX_BODY_BYTES}"}}'), 413, "bytes"),
        (a_call(f'"name": "status", "_meta": {{"any": [{"0," * MAX_VALUES}0]}}'), 413, "values"),
    ],
)
def test_a_message_that_is_not_json_or_costs_much_is_rejected(
    backend: Backend, body: str, status: int, says: str
):
    headers = ACCEPT | a_key(backend, "read") | {"Content-Type": "application/json"}
    with TestClient(an_application(backend)) as client:
        answer = client.post("/mcp", content=body, headers=headers)

    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "arguments", [{"min_score": float("nan")}, {"min_score": 1e999}, {"where": {"year": float("nan")}}]
)
def test_an_argument_that_is_no_number_is_rejected_by_the_tool(backend: Backend, arguments: dict[str, Any]):
    async def talk() -> None:
        with pytest.raises(ToolError, match="finite number"):
            await mcp_server(backend, lambda: observe(backend)).call_tool(
                "search", {"text": "red"} | arguments
            )

    asyncio.run(talk())


def test_a_name_of_the_server_that_is_not_local_is_answered_too(backend: Backend):
    headers = ACCEPT | a_key(backend, "read") | {"Host": "pictures.example"}
    with TestClient(an_application(backend)) as client:
        answer = client.post("/mcp", json=INITIALIZE, headers=headers)

    assert answer.json()["result"]["serverInfo"]["name"] == "sightline"


def test_an_assistant_on_this_machine_starts_the_command_and_needs_no_key(backend: Backend):
    settings = backend.settings
    assert settings.database_url is not None
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "flows.cli", "mcp"],
        cwd=ROOT,
        env={
            "SIGHTLINE_HOME": str(settings.home),
            "SIGHTLINE_DATABASE_URL": settings.database_url.get_secret_value(),
        },
    )

    async def talk() -> None:
        async with Client(server) as client:
            assert (await asked(client, "status"))["state"] == "ok"
            nothing = await client.call_tool("search", {"text": "red"})
            assert nothing.is_error
            assert "nothing has been ingested yet" in str(nothing.content)

    asyncio.run(talk())
