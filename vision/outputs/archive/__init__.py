"""The archive: tracks, events, and counts of every frame, in daily Parquet files (docs/archive.md)."""
