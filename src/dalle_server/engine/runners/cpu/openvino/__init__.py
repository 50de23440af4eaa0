"""Graphs that OpenVINO runs. Importing anything of this package imports OpenVINO, without its telemetry.

`import openvino` would ask its telemetry package, if installed, to call an analytics host, to fork a process for that
and to write into the home directory; where the package cannot be imported it goes without.
"""

import importlib
import sys
from typing import cast

_TELEMETRY = "openvino_telemetry"

if "openvino" not in sys.modules:
    modules = cast("dict[str, object]", sys.modules)
    _found = modules.get(_TELEMETRY)
    modules[_TELEMETRY] = None  # Python's way of saying that a module cannot be imported
    try:
        importlib.import_module("openvino")
    finally:
        del modules[_TELEMETRY]
        if _found is not None:
            modules[_TELEMETRY] = _found
