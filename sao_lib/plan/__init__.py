"""What is to run, and what it costs."""
