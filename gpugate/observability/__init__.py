"""What the gateway tells its operator: listeners, and nobody but the wiring knows them."""
