"""What every object says to a PACS: validators, other readers, and the same content read back."""
