#!/usr/bin/env bash
# A real Prometheus for the tests, in a folder of its own: Debian's package, unpacked without being installed.
#   scripts/prometheus_setup.sh FOLDER
set -euo pipefail
folder=${1:?usage: prometheus_setup.sh FOLDER}
[ -x "$folder/usr/bin/prometheus" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "no apt-get here; put prometheus on PATH" >&2; exit 1; }
mkdir -p "$folder"
cd "$folder"
timeout 240 apt-get download -qq prometheus || { timeout 120 apt-get update -qq && timeout 240 apt-get download -qq prometheus; }
dpkg -x prometheus_*.deb .
rm -f prometheus_*.deb
