"""Requests made from `/openapi.json` by schemathesis, against servers of their own with small limits: no server error, and no
answer that the description does not have. CASES is how many valid requests are made for each operation, and as many that
the description forbids (default 25: about 2,000 requests in all; by hand: 100 and more).

    HOST_BIN=target/debug/host CASES=100 python -m pytest tests/python/test_openapi.py
"""

import os

import pytest
from conftest import serving

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
checks = pytest.importorskip("schemathesis.checks")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

CASES = int(os.environ.get("CASES", "25"))
# Of what is generated, some is valid; small limits keep the work for it small.
LIMITS = ["--max-model-len", "48", "--max-choices", "4", "--max-num-seqs", "8", "--max-num-batched-tokens", "64"]
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.mark.parametrize("runner", ["generate", "pooling"])
def test_answers_are_as_described(runner):
    failures = []
    with serving("--runner", runner, *LIMITS) as address:
        for result in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
            operation = result.ok()
            settings = hypothesis.settings(
                max_examples=CASES,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )

            modes = [schemathesis.GenerationMode.POSITIVE]
            if operation.body:  # of others, nothing can be wrong
                modes.append(schemathesis.GenerationMode.NEGATIVE)
            for mode in modes:

                @settings
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def check(case):
                    case.call_and_validate(checks=CHECKS, timeout=60)

                try:
                    check()
                except BaseException as error:  # groups of failures are no Exception
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    failures.append(f"{operation.label} ({mode.value}): {error!r:.1500}")
    assert not failures, "\n\n".join(failures)
