"""Federated methods as mathematics: one file a method, found by file name.

Imports the standard library, numpy, torch, torchvision and scikit-learn, and nothing else of this project.
Nothing here touches a file, a network, a clock, the environment, global random state, a logger, Ray or MLflow.
"""
