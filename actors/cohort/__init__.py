"""The clients of a round as a method reaches them: what is sent, counted and vetted."""
