"""Where texts come from, how they become tokens, and batches of them."""
