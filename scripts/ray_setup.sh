#!/usr/bin/env bash
# A real Ray for the tests, in an environment of its own that also sees the laboratory's torch (`make lab` comes first).
#   scripts/ray_setup.sh .lab
set -euo pipefail
readonly RAY=2.60.0
lab=$(cd "${1:?usage: ray_setup.sh FOLDER_OF_THE_LABORATORY}" && pwd)
[ -e "$lab/ray/.installed-$RAY" ] && exit 0
[ -x "$lab/venv/bin/python" ] || { echo "the laboratory is not set up; run \`make lab\` first" >&2; exit 1; }
[ -x "$lab/ray/bin/pip" ] || "$(readlink -f "$lab/venv/bin/python")" -m venv "$lab/ray"
"$lab/ray/bin/pip" --disable-pip-version-check --quiet install "ray==$RAY"
purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
purelib "$lab/venv/bin/python" >"$(purelib "$lab/ray/bin/python")/zz_laboratory.pth"
touch "$lab/ray/.installed-$RAY"
