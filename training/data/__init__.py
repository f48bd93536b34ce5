"""One file a dataset, one interface (`dataset.Dataset`); splits by group; the corpus that encoders learn from."""
