"""schemathesis over the served document: every check, in every phase, with examples that are the same in each run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stack import Stack
from tests.servers import Postgres

CONFIG = Path(__file__).parent / "schemathesis.toml"
# For each operation and phase; `make contract EXAMPLES=60` tries more than 5,000 requests.
EXAMPLES = os.environ.get("CONTRACT_EXAMPLES") or "5"
SEED = os.environ.get("CONTRACT_SEED") or "20260131"
LEAST_REQUESTS = 500
MAX_SECONDS = 1_800
COUNT = re.compile(r"(\d+) generated")


@pytest.fixture(scope="module")
def trusting(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system whose workspaces have credits without end, and whose models answer in a translation's form."""
    url = postgres.create_database("contract", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("contract"), url, env={"BILLING_SIGNUP_CREDITS": "1000000"}) as running:
        running.script("openai", default={"text": json.dumps({"source": "en", "translated_text": "Bonjour"})})
        yield running


@pytest.mark.timeout(MAX_SECONDS)
def test_what_is_served_keeps_what_the_document_promises(trusting: Stack, tmp_path: Path) -> None:
    alice = trusting.user()
    environment = {
        "PATH": os.environ["PATH"],
        "API_URL": trusting.gateway_urls[0],
        "API_TOKEN": alice.token,
        "API_WORKSPACE": alice.workspace,
    }
    tried = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG)),
            *("run", f"{trusting.gateway_urls[0]}/api/openapi.json", "--checks", "all"),
            *("--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure", "--no-color"),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    print(tried.stdout[tried.stdout.rfind("= SUMMARY") :])
    assert tried.returncode == 0, tried.stdout + tried.stderr
    counted = COUNT.search(tried.stdout)
    assert counted is not None
    assert int(counted[1]) >= LEAST_REQUESTS
    assert "request_failed" not in trusting["gateway0"].log.read_text()
