#!/usr/bin/env bash
# Puts Node and the MCP clients that `make verify` drives into a folder: `scripts/node_setup.sh .node`.
#
# Exact versions and no lock file: a lock would record where every file was fetched from. Run again, it does nothing.
set -euo pipefail

folder=$(mkdir -p "${1:-.node}" && cd "${1:-.node}" && pwd)
packages=(
  node@22.23.3 # the conformance tool calls fs.globSync, which Node 20 lacks
  @modelcontextprotocol/conformance@0.2.0-alpha.12
  @modelcontextprotocol/inspector@2.12.0
  @modelcontextprotocol/client@2.4.0
  mcp-remote@0.15.1
  axe-core@4.10.3
  playwright-core@1.64.1
)
wanted=$(printf '%s\n' "${packages[@]}")

# The maintained 1.x line of the Python SDK, in an environment of its own beside the 2.x of this program.
if [ -n "${PYTHON:-}" ] && [ ! -e "$folder/python-mcp-1/.installed" ]; then
  "$PYTHON" -m venv "$folder/python-mcp-1"
  "$folder/python-mcp-1/bin/pip" install --quiet --disable-pip-version-check mcp==1.30.0
  touch "$folder/python-mcp-1/.installed"
fi
[ "$(cat "$folder/.installed" 2>/dev/null)" = "$wanted" ] && exit 0
command -v npm >/dev/null || { echo "node: npm is needed to fetch the clients" >&2; exit 3; }
cd "$folder"
[ -e package.json ] || echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund --no-package-lock --no-save "${packages[@]}"
echo "$wanted" >.installed
