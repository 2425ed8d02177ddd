"""These tests change the process for good: tests/integration/test_second_device.py starts one."""

from __future__ import annotations

import os

if "SECOND_DEVICE" in os.environ:
    import second_device

    second_device.install()
else:
    collect_ignore_glob = ["test_*.py"]
