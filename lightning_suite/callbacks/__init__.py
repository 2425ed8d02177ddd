"""One thin callback a file; the mathematics is in the methods' own folders."""
