"""Many runs at once: a search for better settings, and a sweep over the sizes of students."""
