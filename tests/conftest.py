"""What all tests share: a project must do the same wherever the tests run."""

import os

# On a runner of GitHub's no signing key would be made; one of the machine's is not for tests.
for name in ("GITHUB_ACTIONS", "HOMEOSTAT_SIGNING_KEY"):
    os.environ.pop(name, None)
