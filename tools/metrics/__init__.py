"""Live numbers of a vLLM server: one vocabulary over all versions, two looks at a page, and what moved in between."""
