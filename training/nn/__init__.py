"""Parts that more than one system uses."""
