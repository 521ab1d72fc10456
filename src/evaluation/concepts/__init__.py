"""Scores of concepts: noun phrases asked on images, and the instances that a model finds for them."""
