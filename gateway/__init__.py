"""The REST edge: authentication, validation, REST to gRPC. It owns no data and no rules."""
