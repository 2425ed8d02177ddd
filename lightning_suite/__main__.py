"""``python -m lightning_suite`` is the same program as ``lightning-suite``."""

from lightning_suite.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
