"""The starter system: a tile encoder and a tissue head for colorectal H&E."""
