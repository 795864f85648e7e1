"""The only tests that hold full texts: one module an area, each with a table `ROWS`."""
