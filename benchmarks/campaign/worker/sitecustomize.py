"""Python imports this at its start, where this folder is on PYTHONPATH: makes workers stand-ins."""

import os
import sys

if "STANDIN_LOG" in os.environ and "submitit.core._submit" in sys.orig_argv:
    try:
        import standin

        standin.install()
    except BaseException:
        # Python itself would go on after a warning, and the worker would really train.
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
