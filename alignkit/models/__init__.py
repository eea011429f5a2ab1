"""What has weights: value heads, scoring, loading, and tiny models for tests."""
