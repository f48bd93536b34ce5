"""One file a dataset, one interface (`common.Tiles`)."""
