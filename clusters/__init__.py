"""Ray clusters: start or attach, resources and placement."""
