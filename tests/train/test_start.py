"""What costs every call of the program."""

import subprocess
import sys

from tests.support.station_process import REPOSITORY


def test_help_and_completion_need_no_torch():
    """It takes seconds to load, for which nobody who presses Tab should wait."""
    code = "import sys, train.cli; sys.exit(bool({'torch', 'sklearn', 'matplotlib', 'onnx'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
