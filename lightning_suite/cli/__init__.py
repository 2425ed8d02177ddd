"""The command line: ``lightning-suite <command>``."""
