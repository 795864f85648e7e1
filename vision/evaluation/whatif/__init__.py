"""`vision whatif`: the past, judged again with a different configuration."""
