"""The HTTP API, its keys, its queue, and the same for assistants over MCP."""
