"""A local server of pictures: a page to try a student beside its teacher, and the endpoint that applications speak."""
