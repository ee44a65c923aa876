"""Hours of the same, to see what grows."""
