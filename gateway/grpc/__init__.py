"""The gRPC API `pathserve.v1`: proto, servicers, health, reflection; thin over the same use-cases as REST."""
