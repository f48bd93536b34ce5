"""pathserve: the clinical inference server between a pathology department's PACS and its LIS."""

__version__ = "0.1.0"
