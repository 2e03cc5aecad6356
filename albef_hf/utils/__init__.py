"""Files, progress bars, options and names that several folders share."""
