"""A local server of images: a page to try a student beside its teacher, and the endpoint that applications speak."""
