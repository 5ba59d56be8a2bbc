"""Settings: every value has a source, every mistake a sentence, and the documentation names every key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from assistant.settings import KEYS, PREFIX, SettingsError, default_files, defaults, load, load_what_works, state_folder
from assistant.targets import Target, load_targets, policy_for
from tools.addresses import AddressError, Allowance, parse_url

ROOT = Path(__file__).resolve().parents[2]


def problems(environment: dict[str, str], file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load({"HOME": "/nonexistent", **environment}, file)
    assert all(problem.endswith(".") for problem in caught.value.problems)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_nothing_set_is_the_defaults() -> None:
    settings = load({"HOME": "/nonexistent"})
    assert settings == defaults()
    assert {setting.source for setting in settings.values.values()} == {"default"}
    assert settings.number("deadline_s") == 60 and settings.text("store.url") == ""


def test_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", "deadline_s = 20\nlanguage = 'zh'\n[jobs]\nat_once = 7\n")
    settings = load({"VLLM_DIAGNOSE_CONFIG": str(file), "VLLM_DIAGNOSE_DEADLINE_S": "30"})
    assert (settings.number("deadline_s"), settings.whole("jobs.at_once"), settings["language"]) == (30.0, 7, "zh")
    assert settings.values["deadline_s"].source == "VLLM_DIAGNOSE_DEADLINE_S"
    assert settings.values["jobs.at_once"].source == f"{file}: jobs.at_once"
    assert settings.values["jobs.lease_s"].source == "default"
    assert settings.file == file


def test_the_first_file_that_exists_is_read_and_never_one_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config.toml", "deadline_s = 1")
    write(tmp_path / "vllm-diagnose.toml", "deadline_s = 1")
    assert load({"HOME": "/nonexistent"}).file is None
    folder = tmp_path / "xdg" / "vllm-diagnose"
    folder.mkdir(parents=True)
    write(folder / "config.toml", "deadline_s = 5")
    assert load({"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).number("deadline_s") == 5
    assert default_files({"HOME": "/h"})[0] == Path("/h/.config/vllm-diagnose/config.toml")
    assert state_folder({"HOME": "/h", "XDG_STATE_HOME": "relative"}) == Path("/h/.local/state/vllm-diagnose")


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    assert "VLLM_DIAGNOSE_STORE_URL is the nearest one" in problems({"VLLM_DIAGNOSE_STORE_ULR": "x"})
    file = write(tmp_path / "c.toml", "[jobs]\nat_onec = 1\n[store]\nurl_flie = 'x'\n[language]\nx = 1\n")
    text = problems({}, file)
    assert "jobs.at_onec is not a setting; jobs.at_once is the nearest" in text
    assert "store.url_flie" in text and "language.x" in text


def test_variables_that_kubernetes_makes_for_a_service_of_this_name_are_no_settings() -> None:
    load(
        {
            "HOME": "/nonexistent",
            "VLLM_DIAGNOSE_SERVICE_HOST": "10.0.0.1",
            "VLLM_DIAGNOSE_SERVICE_PORT": "80",
            "VLLM_DIAGNOSE_SERVICE_PORT_HTTP": "80",
            "VLLM_DIAGNOSE_PORT": "tcp://10.0.0.1:80",
            "VLLM_DIAGNOSE_PORT_80_TCP": "tcp://10.0.0.1:80",
            "VLLM_DIAGNOSE_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    )


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DEADLINE_S", "soon", "expected a number of at least 1 and at most 86400"),
        ("DEADLINE_S", "0", "at least 1"),
        ("DEADLINE_S", "nan", "at least 1"),
        ("DEADLINE_S", "inf", "at most 86400"),
        ("JOBS_AT_ONCE", "1.5", "a whole number"),
        ("STORE_KEEP_JOBS_DAYS", "-1", "at least 0"),
        ("LANGUAGE", "fr", "one of (empty), en, zh"),
        ("OUTBOUND_ALLOW_PRIVATE", "maybe", "true or false"),
        ("TARGETS_FILE", "a\nb", "a text of one line"),
    ],
)
def test_wrong_values_say_what_was_given_and_what_was_expected(variable: str, value: str, words: str) -> None:
    assert words in problems({PREFIX + variable: value})


def test_wrong_types_in_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        "deadline_s = true\nlanguage = 3\nredact_addresses = 'yes'\n[outbound]\nno_proxy = 'a,b'\nmax_bytes = 1.5\n",
    )
    assert len(problems({}, file).splitlines()) == 5


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    secret = write(tmp_path / "url", "postgresql://u:hunter2@db/x\n")
    settings = load({"HOME": "/n", "VLLM_DIAGNOSE_STORE_URL_FILE": str(secret)})
    assert settings["store.url"] == "postgresql://u:hunter2@db/x"
    assert settings.values["store.url"].shown == "(set, hidden)"
    file = write(tmp_path / "c.toml", "[store]\nurl_file = 'url'\n")
    assert load({}, file)["store.url"] == "postgresql://u:hunter2@db/x"
    both = {"VLLM_DIAGNOSE_STORE_URL": "sqlite:///x", "VLLM_DIAGNOSE_STORE_URL_FILE": str(secret)}
    assert "leave one of them out" in problems(both)
    assert "cannot be read: No such file" in problems({"VLLM_DIAGNOSE_STORE_URL_FILE": "/nonexistent/x"})
    assert "hunter2" not in problems({"VLLM_DIAGNOSE_STORE_URL": "hunter2\x01"})
    assert "is not a setting" in problems({"VLLM_DIAGNOSE_LANGUAGE_FILE": str(secret)})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "is not TOML" in problems({}, write(tmp_path / "a.toml", "= ="))
    assert "No such file" in problems({"VLLM_DIAGNOSE_CONFIG": str(tmp_path / "none.toml")})
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems({}, tmp_path / "b.toml")
    (tmp_path / "c.toml").write_bytes(b"#" * 2_000_000)
    assert "larger than" in problems({}, tmp_path / "c.toml")
    assert "Is a directory" in problems({}, tmp_path)


def test_a_command_that_must_answer_goes_on_with_what_works() -> None:
    settings, said = load_what_works({"HOME": "/n", "VLLM_DIAGNOSE_DEADLINE_S": "x", "VLLM_DIAGNOSE_LANGUAGE": "zh"})
    assert settings["language"] == "zh" and settings.number("deadline_s") == 60 and len(said) == 1


def test_paths_count_from_the_file_that_holds_them(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "targets_file = 'targets.yaml'\n[outbound]\nca_file = '/etc/ca.pem'\n")
    settings = load({}, file)
    assert settings["targets_file"] == str(tmp_path / "targets.yaml") and settings["outbound.ca_file"] == "/etc/ca.pem"


def test_the_documentation_and_the_keys_agree() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert rows == [key.name for key in KEYS]
    for key in KEYS:
        assert key.meaning in text, key.name


def test_settings_need_only_the_standard_library() -> None:
    code = (
        "import sys, assistant.settings as s; s.load_what_works(); "
        "print([m for m in ('pydantic', 'yaml', 'tomllib', 'sqlalchemy', 'httpx') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- targets ----------------------------------------------------------------------------------------------------------

YAML = """
targets:
  prod:
    address: http://vllm.internal:8000
    private: true
    labels: {team: search}
    api_key_file: key
    metrics: {prometheus: "http://10.0.0.9:9090", query: 'job="vllm"'}
    logs: {loki: "https://loki.example.com", query: '{app="vllm"}', token_env: LOKI_TOKEN, private: false}
    node_tools: {mcp: "https://node-1.internal:9443/mcp", token_file: /run/secrets/node}
  laptop: {address: "http://localhost:8000", logs: {files: [server.log, /var/log/vllm]}}
"""
TOML = """
[targets.prod]
address = "http://vllm.internal:8000"
private = true
labels = {team = "search"}
api_key_file = "key"
metrics = {prometheus = "http://10.0.0.9:9090", query = 'job="vllm"'}
logs = {loki = "https://loki.example.com", query = '{app="vllm"}', token_env = "LOKI_TOKEN", private = false}
node_tools = {mcp = "https://node-1.internal:9443/mcp", token_file = "/run/secrets/node"}
[targets.laptop]
address = "http://localhost:8000"
logs = {files = ["server.log", "/var/log/vllm"]}
"""


@pytest.fixture
def targets(tmp_path: Path) -> dict[str, Target]:
    return load_targets(write(tmp_path / "targets.yaml", YAML))


def test_yaml_and_toml_say_the_same(tmp_path: Path, targets: dict[str, Target]) -> None:
    assert load_targets(write(tmp_path / "targets.toml", TOML)) == targets
    prod = targets["prod"]
    assert prod.metrics and prod.metrics.kind == "prometheus" and prod.metrics.query == 'job="vllm"'
    assert prod.labels == {"team": "search"}
    assert targets["laptop"].logs and targets["laptop"].logs[0].paths == (str(tmp_path / "server.log"), "/var/log/vllm")


def test_what_targets_name_may_be_connected_to_and_nothing_else(targets: dict[str, Target]) -> None:
    policy = policy_for(defaults(), targets, Allowance.of("http://192.168.1.5:8000"))
    for url, private in {
        "http://vllm.internal:8000/metrics": True,
        "http://10.0.0.9:9090/api": True,
        "https://loki.example.com/loki": False,
        "https://node-1.internal:9443/mcp": True,
        "http://localhost:8000/": True,
        "http://192.168.1.5:8000/": True,
    }.items():
        assert policy.permit(parse_url(url)).private is private, url
    for url in ("http://vllm.internal:8001/", "https://vllm.internal:8000/", "http://loki.example.com/", "http://x/"):
        with pytest.raises(AddressError):
            policy.permit(parse_url(url))


def test_credentials_are_read_when_used(
    tmp_path: Path, targets: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, logs = targets["prod"].api_key, targets["prod"].logs
    logs = logs[0]
    assert key and logs.token
    with pytest.raises(SettingsError, match="credential file"):
        key.read()
    write(tmp_path / "key", "s3cret\n")
    assert key.read() == "s3cret"
    with pytest.raises(SettingsError, match="LOKI_TOKEN"):
        logs.token.read()
    monkeypatch.setenv("LOKI_TOKEN", "t")
    assert logs.token.read() == "t"
    assert "s3cret" not in repr(targets)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("targets: {a: {adress: 'http://x'}}", "adress is not known; address is the nearest"),
        ("targets: {a: {}}", "address must be a text"),
        ("targets: {a: {address: 'x:8000'}}", "has no scheme"),
        ("targets: {a: {address: 'file:///etc/passwd'}}", "nothing else is opened"),
        ("targets: {a: {address: 'http://169.254.169.254.:80:80/'}}", "is not an address"),
        ("targets: {'a b': {address: 'http://x'}}", "a name has letters"),
        ("targets: {a: {address: 'http://x', private: 1}}", "private must be true or false"),
        ("targets: {a: {address: 'http://x', labels: {n: 1}}}", "labels must map"),
        ("targets: {a: {address: 'http://x', logs: {}}}", "exactly one of files, loki"),
        ("targets: {a: {address: 'http://x', logs: {files: [1]}}}", "logs.files must be"),
        ("targets: {a: {address: 'http://x', metrics: {prometeus: 'http://y'}}}", "prometheus is the nearest"),
        ("targets: {a: {address: 'http://x', api_key_file: a, api_key_env: B}}", "leave one of them out"),
        ("servers: {}", "everything stands below targets"),
        ("targets: [1]", "must map names"),
        ("- 1", "must hold a mapping"),
        ("a: &a [1]\ntargets: {b: *a}", "uses YAML aliases"),
        ("targets: {a: !!python/object:os.system {}}", "is not YAML"),
        ("targets: {", "is not YAML"),
        ("[" * 3000, "is not YAML"),
    ],
)
def test_a_wrong_targets_file_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_targets(write(tmp_path / "targets.yaml", text))
    assert words in str(caught.value)


def test_an_empty_targets_file_and_a_wrong_ending(tmp_path: Path) -> None:
    assert load_targets(write(tmp_path / "t.yml", "")) == {}
    with pytest.raises(SettingsError, match=r"must end in \.toml"):
        load_targets(write(tmp_path / "t.json", "{}"))
