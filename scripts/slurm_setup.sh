#!/usr/bin/env bash
# A real Slurm for the tests, in a folder of its own: Debian's packages, unpacked without being installed.
#   scripts/slurm_setup.sh FOLDER
set -euo pipefail
folder=${1:?usage: slurm_setup.sh FOLDER}
[ -x "$folder/usr/sbin/slurmd-wlm" ] && [ -x "$folder/usr/sbin/munged" ] && [ -x "$folder/usr/bin/srun" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "no apt-get here; there is no Slurm to unpack" >&2; exit 1; }
mkdir -p "$folder"
cd "$folder"
fetch() {
  timeout 240 apt-get download -qq slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 \
    libhwloc15 libnuma1 liblz4-1 libjson-c5 libyaml-0-2 libdbus-1-3 liblua5.1-0
}
fetch || { timeout 120 apt-get update -qq && fetch; }
for package in *.deb; do dpkg -x "$package" .; done
rm -f ./*.deb
