"""Where a model's facts come from: files, headers, what is known, and a hub that stands on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.memory import architecture, safetensors, sources
from tools.memory.config import ConfigError


def checkpoint(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file with these headers; its data are zeros, as its format wants."""
    sizes = {"BF16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1}
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        count = sizes[dtype]
        for n in shape:
            count *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count]}
        at += count
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


def test_a_file_and_a_folder_are_read(tmp_path: Path, llama: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama))
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        found = sources.find(name)
        assert found.origin == "file" and found.model.layers == 32 and found.total_params is None


def test_headers_count_what_is_loaded(tmp_path: Path, llama: dict[str, Any]) -> None:
    llama["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(llama))
    layers = {f"model.layers.{i}.mlp.down_proj.weight": ("BF16", [10, 30]) for i in range(3)}
    checkpoint(tmp_path / "model-00001-of-00002.safetensors", layers)
    checkpoint(
        tmp_path / "model-00002-of-00002.safetensors",
        {"lm_head.weight": ("BF16", [7, 10]), "mtp.fc.weight": ("BF16", [5, 5]), "x.weight_scale_inv": ("F32", [3])},
    )
    # The third layer is for multi-token prediction, and so is mtp.*: vLLM leaves both out.
    assert sources.find(str(tmp_path)).total_params == 2 * 300 + 70


def test_packed_checkpoints_say_nothing_of_parameters(tmp_path: Path, llama: dict[str, Any]) -> None:
    checkpoint(tmp_path / "model.safetensors", {"model.layers.0.q.qweight": ("I32", [8, 64])})
    assert safetensors.of_folder(tmp_path, architecture.read(llama)) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "would have 0 bytes"), (b"\xff" * 16, "would have"), ((5).to_bytes(8, "little") + b"nope!", "not JSON"), ((2).to_bytes(8, "little") + b"[]", "no object"),
     ((22).to_bytes(8, "little") + b'{"a": {"shape": "big"}', "not JSON"), ((23).to_bytes(8, "little") + b'{"a": {"shape": "big"}}', "no shape")],
)  # fmt: skip
def test_damaged_headers_are_named(tmp_path: Path, llama: dict[str, Any], content: bytes, says: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        safetensors.of_folder(tmp_path, architecture.read(llama))


def test_known_models_need_no_network_and_no_hub_library() -> None:
    code = "import sys; from tools.memory import sources; sources.find('Qwen/Qwen3-8B'); print('huggingface_hub' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    "name", ["no such model", "a/b/c", "../../etc/passwd.json", "-x", "x" * 300, "https://example.com/config.json"]
)
def test_what_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        sources.find(name, may_ask_hub=False)


def test_paths_are_only_for_who_may_give_them(tmp_path: Path, llama: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama))
    with pytest.raises(ConfigError, match="neither a file nor"):
        sources.find(str(tmp_path / "config.json"), paths=False)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks: a configuration, the headers of one safetensors file, and refusals."""

    config: bytes = b"{}"
    weights: bytes = b""
    asked: list[str]

    def _answer(self, *, body: bool) -> None:
        type(self).asked.append(
            f"{self.command} {self.path} {self.headers.get('Range', '')} {self.headers.get('authorization', '')}".strip()
        )
        if "secret" in self.path and self.headers.get("authorization") != "Bearer hf_good":
            return self._send(
                401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}
            )
        if self.path.startswith("/api/models/"):
            return self._send(
                200,
                json.dumps(
                    {
                        "id": "some/model",
                        "sha": "0" * 40,
                        "siblings": [{"rfilename": "model.safetensors"}, {"rfilename": "config.json"}],
                    }
                ).encode(),
                body=body,
            )
        for name, content in (("config.json", type(self).config), ("model.safetensors", type(self).weights)):
            if self.path.split("?")[0].endswith(name):
                span = self.headers.get("Range")
                if span:
                    low, high = span.removeprefix("bytes=").split("-")
                    content = content[int(low) : int(high) + 1]
                return self._send(206 if span else 200, content, body=body)
        return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send(self, status: int, content: bytes, extra: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {
            "ETag": '"abc"',
            "X-Repo-Commit": "0" * 40,
            "Content-Length": str(len(content)),
            **(extra or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


@pytest.fixture
def hub(tmp_path: Path, llama: dict[str, Any]) -> Iterator[tuple[type[Hub], dict[str, str]]]:
    (tmp_path / "served").mkdir()
    checkpoint(
        tmp_path / "served" / "model.safetensors",
        {"lm_head.weight": ("BF16", [100, 4096]), "model.layers.0.x.weight": ("BF16", [64, 64])},
    )
    handler = type(
        "ThisHub",
        (Hub,),
        {
            "config": json.dumps(llama).encode(),
            "weights": (tmp_path / "served" / "model.safetensors").read_bytes(),
            "asked": [],
        },
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("HF_") and k.lower() not in ("http_proxy", "https_proxy", "all_proxy")
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    yield handler, environment
    server.shutdown()
    thread.join(10)
    server.server_close()


def ask(environment: dict[str, str], name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "assistant.faces.cli.main", "memory", name, "-o", "json", *more]
    code = "import sys; sys.argv = sys.argv[1:]; from assistant.faces.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *command[2:]],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def test_the_hub_gives_configuration_and_headers_but_never_weights(hub: tuple[type[Hub], dict[str, str]]) -> None:
    handler, environment = hub
    ran = ask(environment, "some/model", "--gpu", "H100")
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["model"] == "some/model" and answer["parameters"] == 100 * 4096 + 64 * 64
    weights = [row for row in handler.asked if "safetensors" in row and row.startswith("GET /some")]
    assert weights and all("bytes=0-" in row for row in weights)


def test_a_gated_model_and_a_hub_that_is_away_end_with_three(hub: tuple[type[Hub], dict[str, str]]) -> None:
    handler, environment = hub
    ran = ask(environment, "some/secret")
    assert ran.returncode == 3 and "could not be had from the hub" in ran.stderr and "Traceback" not in ran.stderr
    assert ask({**environment, "HF_TOKEN": "hf_good"}, "some/secret").returncode == 0
    handler.asked.clear()
    ran = ask({**environment, "HF_HUB_OFFLINE": "1"}, "some/never-seen")
    assert ran.returncode == 3 and handler.asked == []


@pytest.mark.slow
def test_nobody_waits_long_for_a_hub_that_is_away(hub: tuple[type[Hub], dict[str, str]]) -> None:
    began = time.monotonic()
    ran = ask({**hub[1], "HF_ENDPOINT": "http://127.0.0.1:9"}, "some/never-seen")
    assert ran.returncode == 3 and len(ran.stderr.strip().splitlines()) == 1
    assert time.monotonic() - began < sources.HUB_SECONDS + 20
