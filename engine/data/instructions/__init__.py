"""Instructions and answers with facts that can be checked, made from a seed: text without any file."""
