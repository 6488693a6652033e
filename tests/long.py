"""Whether tests that can go on for long do: `LONG_TESTS=1 scripts/test PATH`."""

import os

LONG = os.environ.get("LONG_TESTS") == "1"
