"""What the methods share about Hugging Face causal language models."""
