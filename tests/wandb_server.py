"""As much of a Weights & Biases server on localhost as `wandb sync` needs; it keeps what it is sent."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

KEY = "0123456789" * 4
AUTHORIZATION = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
PROJECT = {"id": "project", "name": "project", "entity": {"id": "entity", "name": "entity"}}
HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"


@dataclass
class Run:
    """What the server holds of one run: the lines of each stream at the offsets that the client named."""

    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    rows_sent: int = 0  # of history, those sent again too
    config: str | None = None
    display_name: str | None = None

    def store(self, name: str, offset: int, lines: list[str]) -> None:
        self.streams.setdefault(name, {}).update(enumerate(lines, offset))
        if name == HISTORY:
            self.rows_sent += len(lines)

    def tail(self, name: str) -> str:
        """The last line, in the words of the GraphQL interface."""
        return json.dumps([line for _, line in sorted(self.streams.get(name, {}).items())][-1:])

    def history(self) -> dict[int, dict[str, Any]]:
        """Rows by step, as the real server keeps them: of two rows with the same step the one sent later."""
        rows = [json.loads(line) for _, line in sorted(self.streams.get(HISTORY, {}).items())]
        return {row["_step"]: row for row in rows}


@dataclass
class WandbServer:
    address: str
    runs: dict[str, Run] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # paths of all POSTs
    refused: str | None = None  # requests with this part in their path are answered with 403

    def bucket(self, name: str) -> dict[str, Any] | None:
        """A run in the words of the GraphQL interface."""
        run = self.runs.get(name)
        if run is None:
            return None
        files = {"history": HISTORY, "events": EVENTS, "log": "output.log"}
        counts = {f"{key}LineCount": len(run.streams.get(file, {})) for key, file in files.items()}
        return {
            "id": f"storage-{name}",
            "name": name,
            "displayName": run.display_name,
            "config": run.config,
            "summaryMetrics": "{}",
            "tags": [],
            "notes": None,
            "description": None,
            "sweepName": None,
            "wandbConfig": '{"t": 1}',
            "project": PROJECT,
            "historyTail": run.tail(HISTORY),
            "eventsTail": run.tail(EVENTS),
            **counts,
        }

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to one query, told by the fields that it asks for."""
        if "upsertBucket" in query:
            inserted = variables["name"] not in self.runs
            run = self.runs.setdefault(variables["name"], Run())
            run.config = variables.get("config") or run.config
            run.display_name = variables.get("displayName") or run.display_name
            return {"upsertBucket": {"bucket": self.bucket(variables["name"]), "inserted": inserted}}
        if "RunResumeStatus" in query:
            return {"model": {**PROJECT, "bucket": self.bucket(variables["name"])}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.address}/storage/{name}"} for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        if "viewer" in query:
            return {
                "viewer": {
                    "id": "user",
                    "entity": "entity",
                    "username": "user",
                    "email": "",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def do_GET(self) -> None:
        self.answer(200, {})

    def do_PUT(self) -> None:
        self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        site: WandbServer = self.server.site  # type: ignore[attr-defined]
        content = self.body()
        site.requests.append(self.path)
        if self.path != "/graphql" and not self.path.endswith("/file_stream"):
            return self.answer(200, {})  # the client's own statistics
        if self.headers.get("Authorization") != AUTHORIZATION:
            return self.answer(401, {"errors": [{"message": "invalid key"}]})
        if site.refused in self.path.split("/"):
            return self.answer(403, {"error": "refused"})
        message = json.loads(content)
        if self.path == "/graphql":
            return self.answer(200, {"data": site.graphql(message["query"], message.get("variables") or {})})
        for name, chunk in (message.get("files") or {}).items():
            site.runs[self.path.split("/")[-2]].store(name, chunk["offset"], chunk["content"])
        return self.answer(200, {})
