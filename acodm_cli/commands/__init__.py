"""One module per command; run.py is what the two training commands share."""
