"""Concepts: categories as noun phrases, and images with some of them to train on."""
