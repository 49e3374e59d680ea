"""The schedule file: what a run drew and learned, as one self-describing Parquet file."""
