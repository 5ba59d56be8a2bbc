#!/usr/bin/env bash
# A real Prometheus and Alertmanager for the tests, in a folder of its own: Debian's packages, unpacked without being installed.
#   scripts/prometheus_setup.sh FOLDER
set -euo pipefail
folder=${1:?usage: prometheus_setup.sh FOLDER}
[ -x "$folder/usr/bin/prometheus" ] && [ -x "$folder/usr/bin/prometheus-alertmanager" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "no apt-get here; put prometheus on PATH" >&2; exit 1; }
mkdir -p "$folder"
cd "$folder"
fetch() { timeout 240 apt-get download -qq prometheus prometheus-alertmanager; }
fetch || { timeout 120 apt-get update -qq && fetch; }
for package in prometheus*.deb; do dpkg -x "$package" .; done
rm -f prometheus*.deb
