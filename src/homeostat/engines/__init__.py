"""Where scans and fits run: each module is one implementation of `contracts.Engine`.

All take a module-level function with its arguments and run it away from the calling process.
All give its result back, or raise `EngineError` when the function, the child or a limit ended it.
"""

from homeostat.engines.local import LocalEngine

__all__ = ["LocalEngine"]
