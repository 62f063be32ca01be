"""The documentation, and the script that keeps what it shows in step with the program: `python -m docs.make`."""
