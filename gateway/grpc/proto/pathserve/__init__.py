"""The protocol buffers of the gRPC API, and the code made of them by `python -m gateway.grpc.generate`."""
