"""The MCP face: the assistant as tools, resources and prompts for an LLM client, over stdio and streamable HTTP."""
