"""The second world: a language model so small that it is trained here, on sums."""
