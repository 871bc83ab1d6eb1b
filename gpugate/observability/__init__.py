"""Log lines: where they go, what they contain, and what is removed from them."""
