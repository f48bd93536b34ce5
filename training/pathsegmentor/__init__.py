"""Segmentation by words: one network, an image and a sentence to a mask (PathSegmentor, arXiv 2506.20988)."""
