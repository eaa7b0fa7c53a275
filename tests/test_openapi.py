"""The document at `/openapi.json` is a promise: a real sidecar is held to it, with good requests and with bad ones."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sidecar_process import SidecarProcess

SEED = int(os.environ.get("PER_AGENT_SEED", random.randrange(2**32)))
# What the document cannot say (a parameter given twice, text that is no date) is refused with 400, as documented.
_NOT_ASKED = "positive_data_acceptance"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_schemathesis_finds_no_500_and_no_answer_that_is_not_documented(tmp_path):
    print(f"PER_AGENT_SEED={SEED}")
    with SidecarProcess(tmp_path) as sidecar:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{sidecar.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {sidecar.token}"),
                *("--seed", str(SEED), "--max-examples", "30", "--phases", "examples,coverage,fuzzing"),
                *("--exclude-checks", _NOT_ASKED, "--no-color"),
            ],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            cwd=tmp_path,
            env=os.environ
            | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(Path(__file__).parent)},
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout[-6000:]
        selected, tested = re.search(r"Selected: (\d+)/\d+\s+Tested: (\d+)", done.stdout).groups()
        assert selected == tested != "0"
        assert "Traceback" not in sidecar.said()
        assert sidecar.token not in sidecar.said()
        assert sidecar.get("/v1/books")["balanced"] is True
        assert sidecar.stop() == 0
