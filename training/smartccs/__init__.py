"""Smart-CCS: from cells of a smear to a Bethesda class, with adaptation to other laboratories (arXiv 2502.09662)."""
