"""Depth-muP and the depth-aware learning-rate correction (Neural Feature Dynamics)."""
