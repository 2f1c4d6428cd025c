"""Serve the HTTP API, its request queue, and MCP tools for assistants."""
