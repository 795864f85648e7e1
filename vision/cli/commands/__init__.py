"""One module per command: its arguments, and the call of what it does. Imports of that are inside the functions."""
