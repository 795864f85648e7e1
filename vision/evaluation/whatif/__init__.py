"""Implementation of `vision whatif` and `vision replay`, which evaluate archived tracks a second time."""
