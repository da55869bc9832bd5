"""What the OpenAPI document promises, tried against the running system."""
