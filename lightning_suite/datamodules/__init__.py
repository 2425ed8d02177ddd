"""One datamodule a file."""
