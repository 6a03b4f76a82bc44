"""A local image server: a web page that compares a student with its teacher, and an OpenAI-compatible endpoint."""
