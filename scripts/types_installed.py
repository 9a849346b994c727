"""Type-checks the tests against a plain (not editable) install, where mypy finds the plugin folders too.

Usage: python scripts/types_installed.py VENV, a virtual environment that holds memdefense alone, installed plainly.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """[mypy]
strict = true
explicit_package_bases = true

[mypy-datasets.*,datasketch.*,opacus.*,pydivsufsort.*,scipy.*,sklearn.*]
ignore_missing_imports = true
"""


def main() -> int:
    """Returns mypy's exit code."""
    root = Path(__file__).resolve().parent.parent
    venv = Path(sys.argv[1]).resolve()
    (plain,) = venv.glob("lib/python*/site-packages")
    # The libraries come from this environment. A .pth is read after the folder it stands in, so the plain install wins.
    (plain / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        # Away from the checkout, or its folders would be found before the install.
        shutil.copytree(root / "tests", Path(folder) / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "mypy.ini").write_text(CONFIG)
        command = [sys.executable, "-m", "mypy", "--python-executable", str(venv / "bin" / "python"), "tests"]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
