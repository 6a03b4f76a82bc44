"""A student behind a local page and an endpoint for pictures."""
