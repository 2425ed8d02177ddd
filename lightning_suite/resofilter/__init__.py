"""ResoFilter: what one step on a sample would do to the weights, and which data to keep."""
