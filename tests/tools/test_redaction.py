"""No secret leaves, hardly anything harmless is replaced, and no text makes it slow.

Every secret is made here from parts: none is real, and no scanner should take this file for a leak.
"""

from __future__ import annotations

import base64
import hashlib
import random
import string
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.redaction import Redactor, clean, redact

LETTERS = string.ascii_letters
MIXED = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
ROUNDS = 5

Maker = Callable[[random.Random], str]


def of(alphabet: str, length: int, prefix: str = "", suffix: str = "") -> Maker:
    """A maker of tokens; each holds a letter and a digit of its alphabet, as generated ones of such a length do."""
    letter = next((c for c in alphabet if c.isalpha()), "")
    digit = next((c for c in alphabet if c.isdigit()), "")
    fixed = letter + digit
    return lambda r: prefix + fixed + "".join(r.choices(alphabet, k=length - len(fixed))) + suffix


def jwt(r: random.Random) -> str:
    parts = ('{"alg":"HS256"}', f'{{"sub":"{r.random()}"}}', r.randbytes(24).hex())
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def basic(r: random.Random) -> str:
    return base64.b64encode(f"operator:{of(MIXED, 14)(r)}".encode()).decode()


def key_block(r: random.Random) -> str:
    return "\n".join(base64.b64encode(r.randbytes(48)).decode() for _ in range(4))


def password(r: random.Random) -> str:
    return "".join(r.choices(MIXED + "!#%^*_+.~", k=r.randint(7, 18))) + "x"


P = "hf" + "_"  # kept apart so that a scanner sees no token
#: kind -> (how to make one, lines in which it appears; {} is the secret)
KINDS: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "hugging face": (
        of(MIXED, 34, P),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. Token {} is not authorized",
            "docker run --gpus all -e HUGGING_FACE_HUB_TOKEN={} vllm/vllm-openai:v0.9.1 --model m",
            "I use login('{}') in the notebook",
        ),
    ),
    "openai": (
        of(MIXED, 44, "sk" + "-proj-"),
        ("openai.AuthenticationError: Incorrect API key provided: {}.", "sent {}"),
    ),
    "openai, old": (of(MIXED, 48, "sk" + "-"), ("client = OpenAI(api_key='{}')", 'export KEY="{}"')),
    "anthropic": (of(MIXED, 60, "sk" + "-ant-api03-"), ("using key {}, retrying",)),
    "github classic": (
        of(MIXED, 36, "gh" + "p_"),
        ("remote: invalid credentials for {}", "git clone https://{}@github.com/x/y"),
    ),
    "github fine-grained": (
        of(MIXED + "_", 60, "github" + "_pat_"),
        ("pip install git+https://x:{}@github.com/x/y.git",),
    ),
    "gitlab": (
        of(MIXED, 20, "gl" + "pat-"),
        ("curl --header 'PRIVATE-TOKEN: {}' https://gitlab.example/api", "clone with {}"),
    ),
    "slack": (
        of(string.digits, 12, "xo" + "xb-", "-" + "k9" * 12),
        ("slack_sdk: invalid_auth for {}", "SLACK_BOT_TOKEN={}"),
    ),
    "slack app": (of(MIXED, 50, "xa" + "pp-1-A0B1C2-"), ("connecting with {}",)),
    "slack webhook": (
        lambda r: f"T{of(UPPER, 8)(r)}/B{of(UPPER, 8)(r)}/{of(MIXED, 24)(r)}",
        ("alert: https://hooks." + "slack.com/services/{}",),
    ),
    "aws key id": (
        of(UPPER, 16, "AK" + "IA"),
        ("aws_access_key_id = {}", "s3: The AWS Access Key Id {} you provided does not exist"),
    ),
    "aws secret": (
        of(MIXED + "+/", 40),
        (
            "aws_secret_access_key = {}",
            "AWS_SECRET_ACCESS_KEY={} vllm serve s3://m",
            "  - name: AWS_SECRET_ACCESS_KEY\n    value: {}",
        ),
    ),
    "google api": (of(MIXED + "_-", 35, "AI" + "za"), ("https://maps.example/v1?key={}", "API key not valid: {}")),
    "google oauth": (of(MIXED + "_-", 60, "ya" + "29."), ("gcsfs: token {} expired",)),
    "npm": (of(MIXED, 36, "np" + "m_"), ("//registry/:_authToken={}", "npm ERR! {} rejected")),
    "pypi": (of(MIXED + "_-", 90, "py" + "pi-AgEIcHlwaS5vcmc"), ("twine upload -u __token__ -p {}",)),
    "digitalocean": (of(HEX, 64, "do" + "p_v1_"), ("doctl auth init -t {}",)),
    "json web token": (jwt, ("Authorization: Bearer {}", "session {} expired", '{{"id_token": "{}"}}')),
    "stripe": (of(MIXED, 24, "sk" + "_live_"), ("stripe key {} used",)),
    "sendgrid": (lambda r: "S" + f"G.{of(MIXED, 22)(r)}.{of(MIXED, 43)(r)}", ("mail: {} refused",)),
    "telegram": (
        lambda r: f"{r.randint(10**8, 10**9)}:A" + f"A{of(MIXED, 33)(r)}",
        ("https://api.telegram.org/bot{}/send", "bot {} up"),
    ),
    "databricks": (of(HEX, 32, "da" + "pi"), ("mlflow: token {} invalid",)),
    "vault": (of(MIXED, 30, "hv" + "s."), ("X-Vault-Token: {}", "unsealed with {}")),
    "docker hub": (of(MIXED, 27, "dc" + "kr_pat_"), ("docker login -u me -p {}", "denied: {}")),
    "groq": (of(MIXED, 52, "gs" + "k_"), ("GROQ: {}",)),
    "nvidia": (of(MIXED + "_-", 64, "nv" + "api-"), ("NGC_API_KEY={}", "nim: 403 for {}")),
    "replicate": (of(MIXED, 37, "r8" + "_"), ("replicate {}",)),
    "modelscope": (
        lambda r: "ms" + f"-{uuid.UUID(int=r.getrandbits(128))}",
        ("modelscope login --token {}", "MODELSCOPE: {}"),
    ),
    "alibaba": (of(MIXED, 20, "LT" + "AI"), ("oss: InvalidAccessKeyId {}",)),
    "wandb": (of(HEX, 40), ("wandb login {}", "WANDB_API_KEY={}", "os.environ['WANDB_API_KEY'] = '{}'")),
    "grafana": (of(MIXED, 32, "gl" + "sa_", "_0a1b2c3d"), ("grafana: {}",)),
    "azure storage": (
        lambda r: base64.b64encode(r.randbytes(64)).decode(),
        ("DefaultEndpointsProtocol=https;AccountName=models;AccountKey={};EndpointSuffix=core.windows.net",),
    ),
    "azure openai": (of(HEX, 32), ("curl -H 'api-key: {}' https://x.openai.azure.com", "AZURE_OPENAI_API_KEY: {}")),
    "signed address": (
        of(MIXED, 43, suffix="%3D"),
        (
            "GET https://models.blob.example/x.safetensors?sv=2024-01-01&sig={} 403",
            "https://b.s3.example/w?X-Amz-Signature={}&x=1",
        ),
    ),
    "server key": (
        password,
        (
            "vllm serve Qwen/Qwen3-8B --api-key {} --port 8000",
            "vllm serve m --api-key={}",
            "Namespace(host=None, api_key='{}', lora_modules=None)",
            "non-default args: {{'port': 8000, 'api_key': ['{}'], 'model': 'm'}}",
            "command: ['vllm', 'serve', 'm', '--api-key', '{}']",
            "vllm serve m \\\n  --api-key \\\n  {} \\\n  --port 8000",
        ),
    ),
    "bearer": (
        of(MIXED, 24),
        (
            "curl -H 'Authorization: Bearer {}' http://h:8000/v1/models",
            "headers={{'Authorization': 'Bearer {}'}}",
            "(b'authorization', b'Bearer {}')",
        ),
    ),
    "basic": (basic, ("Proxy-Authorization: Basic {}", "> authorization: Basic {}")),
    "cookie": (of(MIXED, 30, "session="), ("Cookie: {}; theme=dark", "< set-cookie: {}; HttpOnly")),
    "address password": (
        password,
        (
            "sqlalchemy: could not connect to postgresql://vllm:{}@db.internal:5432/x",
            "HTTPS_PROXY=http://me:{}@proxy:3128",
            "redis://:{}@cache:6379/0",
        ),
    ),
    "named password": (
        password,
        (
            "password: {}",
            "POSTGRES_PASSWORD={}",
            '{{"user": "me", "password": "{}"}}',
            "--redis-password {}",
            "REDIS_PASSWORD: '{}'",
            "dsn: host=db user=me password={} dbname=x",
        ),
    ),
    "private key": (
        key_block,
        (
            "-----BEGIN RSA PRIV" + "ATE KEY-----\n{}\n-----END RSA PRIV" + "ATE KEY-----",
            "-----BEGIN OPENSSH PRIV" + "ATE KEY-----\n{}",
        ),
    ),
    "variable": (
        password,
        (
            "LMCACHE_SECRET={} python run.py",
            "export MY_SERVICE_TOKEN='{}'",
            '  VLLM_API_KEY: "{}"',
            "docker run -e VLLM_API_KEY={} vllm",
        ),
    ),
    "client secret": (of(MIXED, 32), ("client_secret={}&grant_type=client_credentials", '"client_secret": "{}"')),
    "named in chinese": (of(MIXED, 16), ("密码是{}，帮我看看", "我的密钥：{}")),
}
FRAMES = (
    "{}",
    "(APIServer pid=4021) INFO 11-21 00:55:59 [api_utils.py:286] {}",
    "2026-03-04T05:06:07.123456789Z stderr F {}",
    "ERROR 06-10 21:32:17 engine.py:88] {}",
)


def secrets_in_lines() -> list[tuple[str, str, str]]:
    """(kind, secret, line): ROUNDS of every kind, over its lines and frames."""
    r = random.Random(20)
    rows = []
    for kind, (make, lines) in KINDS.items():
        for n in range(ROUNDS):
            secret = make(r)
            rows.append((kind, secret, FRAMES[n % len(FRAMES)].format(lines[n % len(lines)].format(secret))))
    return rows


def test_no_secret_of_the_corpus_leaves() -> None:
    rows = secrets_in_lines()
    assert len(rows) >= 200
    assert len(KINDS) >= 40
    left = [(kind, redact(line)) for kind, secret, line in rows if any(p in redact(line) for p in secret.split("\n"))]
    assert not left


def test_what_stands_around_a_secret_stays() -> None:
    line = f"vllm serve org/model --api-key {'k1' * 10} --port 8000"
    assert redact(line) == "vllm serve org/model --api-key <secret> --port 8000"
    assert redact("redis://:hunter22@cache:6379/0") == "redis://:<secret>@cache:6379/0"
    assert redact("curl -H 'Authorization: Bearer abcdef123' h") == "curl -H 'Authorization: Bearer <secret>' h"
    assert redact("密码是abc123xyz，帮我看看") == "密码是<secret>，帮我看看"


def harmless_in_lines() -> list[tuple[str, str]]:
    """(token, line): what a vLLM log is full of and what no one has to hide."""
    r = random.Random(21)
    makers: dict[str, Maker] = {
        "At commit {}, built from source": of(HEX, 40),
        "vllm commit {} (main)": of(HEX, 9),
        "Received request cmpl-{}: prompt: 'x', params: SamplingParams(n=1)": of(HEX, 32),
        "Added request chatcmpl-{}-0.": of(HEX, 32),
        "request_id={} finished": lambda q: str(uuid.UUID(int=q.getrandbits(128))),
        "GPU {} is lost": lambda q: f"GPU-{uuid.UUID(int=q.getrandbits(128))}",
        "Using cache directory: /home/vllm/.cache/vllm/torch_compile_cache/{}/rank_0_0/backbone": of(HEX, 10),
        "saved AOT compiled function to /home/vllm/.cache/vllm/torch_aot_compile/{}/rank_0_0/model": of(HEX, 64),
        "oid sha256:{}": of(HEX, 64),
        "sha256:{} vllm/vllm-openai@v0.9.2": of(HEX, 64),
        "Triton kernel hash key: {}": lambda q: hashlib.sha256(q.randbytes(4)).hexdigest(),
        "KeyError: '{}'": lambda q: f"model.layers.{q.randint(0, 80)}.mlp.experts.{q.randint(0, 99)}.w13_weight_scale",
        "snapshot at models--org--name/snapshots/{}/config.json": of(HEX, 40),
        "served model {} ready": lambda q: (
            f"org{q.randint(1, 99)}/Some-Model-{q.randint(1, 99)}B-Instruct-v{q.random():.1f}"
        ),
        "adapter /data/adapters/{}/adapter_model.safetensors loaded": of(MIXED, 12),
        "max_num_batched_tokens={}, max_num_seqs=256": lambda q: str(q.randint(512, 65536)),
        "Avg prompt throughput: {} tokens/s, Avg generation throughput: 0.0 tokens/s": lambda q: (
            f"{q.random() * 900:.1f}"
        ),
        "GPU KV cache size: {} tokens": lambda q: f"{q.randint(1, 900)},{q.randint(100, 999)}",
        "max_tokens={}, prompt_token_ids: None, lora_request: None": lambda q: str(q.randint(1, 9999)),
        "eos_token_id: {}": lambda q: str(q.randint(1, 200000)),
        "eos_token='{}'": lambda q: q.choice(["</s>", "<|im_end|>", "<|eot_id|>", "[SEP]", "<eos>"]),
        "bos_token: {}": lambda q: q.choice(["<s>", "<|begin_of_text|>", "[CLS]", "<bos>"]),
        "tokenizer='{}', skip_tokenizer_init=False": lambda q: f"/srv/models/m{q.randint(1, 999)}",
        "--tokenizer {} --tokenizer-mode auto": lambda q: f"org/tok-{q.randint(1, 999)}",
        "hf_token={}, hf_overrides={{}}": lambda q: "None",
        "api_key={}, lora_modules=None": lambda q: q.choice(["None", "$VLLM_API_KEY", "''"]),
        "'api_key': {}": lambda q: q.choice(["None", "<redacted>", "[]"]),
        "--api-key {} --port 8000": lambda q: q.choice(["$KEY", '"$VLLM_API_KEY"', "${API_KEY}", "<your-key>"]),
        "NCCL INFO comm 0x{} rank 3 nranks 8 cudaDev 3 busId 4c000": of(HEX, 12),
        "NCCL INFO Channel 00/0 : {} via P2P/CUMEM": lambda q: (
            f"{q.randint(0, 7)}[{q.randint(0, 7)}] -> {q.randint(0, 7)}[0]"
        ),
        "NVRM: Xid (PCI:0000:{}:00): 79, pid=1234": of(HEX, 2),
        "torch.Size([{}, 4096]) does not match": lambda q: str(q.randint(1, 99999)),
        "disk cache task-{} done": of(MIXED, 22),
        "pod vllm-{}-7xk2p restarted": of(HEX, 10),
        "import pplx-kernels {} failed": lambda q: f"{q.randint(0, 3)}.{q.randint(0, 9)}.{q.randint(0, 99)}",
        "http://{}:8000/v1/models returned 200": lambda q: (
            f"10.{q.randint(0, 255)}.{q.randint(0, 255)}.{q.randint(1, 254)}"
        ),
        "git+https://github.com/org/{}.git@main": of(string.ascii_lowercase, 12),
        "speculative_token_tree='{}'": lambda q: f"[(0,), ({q.randint(0, 3)}, {q.randint(0, 3)})]",
        "cache_key={} compile range (1, 8192)": of(HEX, 64),
        "enc_dec_key: layer{}.key_cache": lambda q: str(q.randint(0, 90)),
        "Error: unexpected token: '{}'": lambda q: q.choice([",", "}", "identifier", "EOF"]),
        'File "/opt/venv/lib/python3.11/site-packages/{}.py", line 88, in forward': of(string.ascii_lowercase, 14),
        "dist_init_method=tcp://{}": lambda q: f"127.0.0.1:{q.randint(1024, 65535)}",
        "ipc:///tmp/{}": lambda q: str(uuid.UUID(int=q.getrandbits(128))),
        "when I leave --api-key {} the server starts": lambda q: q.choice(["out", "unset", "empty", "and"]),
        "authentication {} for this route": lambda q: q.choice(["required", "failed", "disabled"]),
        "--ssl-keyfile {} --ssl-certfile /etc/tls/tls.crt": lambda q: f"/etc/tls/tls{q.randint(1, 99)}.key",
        "prefix cache hit rate: {}%": lambda q: f"{q.random() * 100:.1f}",
        "block_hash={}": lambda q: str(q.getrandbits(63)),
        "image_token_index={}": lambda q: str(q.randint(1, 99999)),
    }
    return [(token, line.format(token)) for line, make in makers.items() for token in (make(r) for _ in range(25))]


def test_harmless_tokens_stay() -> None:
    rows = harmless_in_lines()
    replaced = [redact(line) for _, line in rows if redact(line) != line]
    assert len(replaced) <= 0.01 * len(rows), replaced[:10]


def test_real_logs_are_left_alone(captured: Path) -> None:
    logs = sorted(captured.glob("*/server.log"))
    assert logs
    changed = {log.parent.name: Counter() for log in logs}
    for log in logs:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if redact(line) != line:
                changed[log.parent.name][redact(line)] += 1
    assert not {name: lines for name, lines in changed.items() if lines}


def test_what_is_replaced_stays_replaced() -> None:
    for _, _, line in secrets_in_lines():
        once = redact(line)
        assert redact(once) == once


def test_one_bundle_has_one_name_for_one_secret() -> None:
    first, second = of(MIXED, 34, P)(random.Random(1)), of(MIXED, 34, P)(random.Random(2))
    redactor = Redactor()
    assert redactor.redact(f"a {first} b {second}") == "a <secret:1> b <secret:2>"
    assert redactor.redact(f"HF_TOKEN={second}") == "HF_TOKEN=<secret:2>"
    assert redactor.redact("HF_TOKEN=<secret:2>") == "HF_TOKEN=<secret:2>"
    assert redactor.replaced == 2


def test_addresses_and_emails_are_replaced_on_request_only() -> None:
    line = "worker 10.1.2.3 (ada@example.org, fe80::1c2:3ff:fe04:5) joined 127.0.0.1 with torch 2.8.0.1.2"
    assert Redactor().redact(line) == line
    hidden = Redactor(addresses=True, emails=True).redact(line)
    assert hidden == "worker <address:1> (<email:1>, <address:2>) joined 127.0.0.1 with torch 2.8.0.1.2"


@pytest.mark.parametrize(
    ("dirty", "wanted"),
    [
        ("\x1b[1;31mERROR\x1b[0m 06-10", "ERROR 06-10"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07", "link"),
        ("\x1b]0;title without an end\nnext", "\nnext"),
        ("loading 10%\rloading 20%\r\nready", "loading 10%\nloading 20%\nready"),
        ("safe\u202egnp.exe\u2066 \u200bzero\ufeff", "safegnp.exe zero"),
        ("null\x00 bell\x07 del\x7f c1\x9b31mred", "null bell del c1red"),
        ("tag\U000e0041 lone\udc80", "tag lone\ufffd"),
        ("tab\tand 中文 é 🙂 stay\n", "tab\tand 中文 é 🙂 stay\n"),
    ],
)
def test_invisible_and_control_characters_go(dirty: str, wanted: str) -> None:
    assert clean(dirty) == wanted
    assert clean(wanted) == wanted


def test_a_secret_behind_invisible_characters_is_found() -> None:
    token = of(MIXED, 34, P)(random.Random(3))
    assert redact(clean(f"{token[:9]}\u200b{token[9:20]}\x1b[0m{token[20:]}")) == "<secret>"


HOSTILE = {
    "quotes": "api_key='" * 20_000,
    "colons": "://" + "a:" * 100_000,
    "names": "token_" * 40_000,
    "dashes": "--" * 100_000 + "api-key",
    "blanks": "password=" + " " * 200_000,
    "key block": "-----BEGIN PRIVATE KEY-----" * 8_000,
    "escapes": "\x1b[" * 100_000 + "1;" * 50_000,
    "prefixes": ("hf" + "_a1 sk" + "-a1 ") * 20_000,
    "surrogates": "password=\udc80 " * 20_000,
    "emails": "a@" * 100_000,
    "addresses": "1.1.1." * 40_000 + "::" * 40_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name: str) -> None:
    text = HOSTILE[name]
    redactor = Redactor(addresses=True, emails=True)
    redactor.redact(clean(text[:100]))
    started = time.process_time()
    redactor.redact(clean(text))
    assert time.process_time() - started < 4.0  # quadratic work on these takes minutes


def test_random_text_neither_fails_nor_leaks(fuzz_seconds: float) -> None:
    """Secrets inside random surroundings that do not touch them; text of any characters raises nothing."""
    r = random.Random(22)
    rows = [(secret, line) for _, secret, line in secrets_in_lines() if "\n" not in secret]
    noise = [
        " ",
        "\n",
        "\t",
        "中",
        "é",
        "\udc80",
        "\x1b[0m",
        "=",
        ":",
        "'",
        '"',
        "{",
        "}",
        "--",
        "token",
        "://",
        "@",
        "a1",
        "<s>",
    ]
    end = time.monotonic() + fuzz_seconds
    while time.monotonic() < end:
        secret, line = r.choice(rows)
        before, after = ("".join(r.choices(noise, k=r.randint(0, 30))) for _ in range(2))
        assert secret not in redact(f"{before}\n{line}\n{after}")
        redact(before + line[: r.randint(0, len(line))] + after)
