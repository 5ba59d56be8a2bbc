"""What all tests share: the captured logs of a real server, and how long fuzzing may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.endurance.fuzzing import Fuzz, seed_of

DATA = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=2.0,
        help="how long each fuzz test goes on (make verify: 20, make endure: 900)",
    )

    parser.addoption(
        "--fuzz-seed", default="20261121", help="what fuzz tests make their inputs from; 'random' makes one up"
    )
    parser.addoption("--fuzz-only", type=int, default=None, help="only this input of the fuzz test that is chosen")
    parser.addoption("--soak-seconds", type=float, default=240.0, help="how long the soak goes on (make endure: 1800)")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """The inputs of one fuzz test, by its name."""
    option = request.config.getoption
    return Fuzz(
        request.node.name, float(option("--fuzz-seconds")), seed_of(str(option("--fuzz-seed"))), option("--fuzz-only")
    )


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    """Seconds that one fuzz test may take."""
    return float(request.config.getoption("--fuzz-seconds"))


@pytest.fixture(scope="session")
def captured() -> Path:
    """The folder of the logs that a real server printed; its manifest.yaml names the cause of each."""
    return DATA / "lab"


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests see neither the developer's settings nor write into the developer's home."""
    for name in [n for n in os.environ if n.startswith("VLLM_DIAGNOSE_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
