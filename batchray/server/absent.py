"""The parts of Letta's API that batchray does not have: a request for one gets a 404 that says so."""

from __future__ import annotations

import re

_OF_AGENT = "agents/[^/]+/"
_ABSENT = {
    "archival memory is": rf"archives|passages|{_OF_AGENT}(archival-memory|archives)",
    "identities are": rf"identities|{_OF_AGENT}identities",
    "folders and files are": rf"folders|sources|{_OF_AGENT}(folders|sources|files)",
    "groups of agents are": rf"groups|{_OF_AGENT}groups",
    "templates are": "templates",
    "conversations besides that of each agent are": "conversations",
    "MCP servers are": "mcp-servers|tools/mcp",
    "model providers of clients are": "providers",
    "sandboxes are": "sandbox-config",
    "lists of tags are": "tags",
    "access tokens of clients are": "client-side-access-tokens",
    "embedding models are": "models/embedding|embeddings",
    "messages of all agents together are": "messages(?!/batches)",
    "scheduled messages are": f"{_OF_AGENT}schedule",
    "summaries of conversations are": f"{_OF_AGENT}summarize",
    "files of agents are": f"agents/import|{_OF_AGENT}export",
    "projects, users and organizations are": "projects|users|orgs",
}
_PATTERNS = {noun: re.compile(f"/v1/(?:{paths})(?:/|$)") for noun, paths in _ABSENT.items()}


def absence_of(path: str) -> str | None:
    """Return a sentence about the part of Letta's API that a path belongs to, or None if it is no absent part."""
    noun = next((noun for noun, pattern in _PATTERNS.items() if pattern.match(path)), None)
    return noun and f"{noun} not part of batchray, which serves agents, batches of requests to them, and what they need"
