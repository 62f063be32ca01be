"""Federated methods as mathematics: one file a method, found by file name.

Imports the standard library, numpy, torch, torchvision and scikit-learn, for language models transformers, peft and
tokenizers where they are used, and nothing else of this project. Nothing here touches a file, a network, a clock, the
environment, global random state, a logger, Ray or MLflow; nets/language_models.py alone reads folders of base models.
"""
