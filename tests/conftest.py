"""What all tests share: a project must do the same wherever the tests run."""

import os

import pytest
import structlog

# On a runner of GitHub's no signing key would be made; one of the machine's is not for tests.
for name in ("GITHUB_ACTIONS", "HOMEOSTAT_SIGNING_KEY"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _no_log_of_another_test():
    """An application that one test made configures the log of the whole process."""
    yield
    structlog.reset_defaults()
