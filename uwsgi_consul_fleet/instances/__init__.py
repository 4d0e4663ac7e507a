"""What the instances say, and commands beside them in the release that serves."""
