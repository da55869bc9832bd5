"""The gRPC services behind the gateway."""
