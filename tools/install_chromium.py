"""Install a browser for the tests of the report page, unless there is one: Debian's where we may, else Playwright's.

Usage: install_chromium.py
"""

import os
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Return 0 where a browser is there in the end."""
    if any(shutil.which(name) for name in BROWSERS):
        return 0
    commands = [[sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        commands.insert(0, ["apt-get", "install", "-y", "--no-install-recommends", "chromium"])
        subprocess.run(["apt-get", "update"], check=False)  # noqa: S607  # the system's own
    return 0 if any(subprocess.run(command, check=False).returncode == 0 for command in commands) else 1  # noqa: S603  # commands from above


if __name__ == "__main__":
    sys.exit(main())
