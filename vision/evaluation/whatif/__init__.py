"""Implementation of `vision whatif` and `vision replay`, which judge archived tracks again."""
