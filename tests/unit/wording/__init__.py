"""The only tests that contain full texts. Each module tests one area, and has a table `ROWS`."""
